"""Overlays that started guests write to, made by the qemu-img that belongs to the QEMU that is started."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from parallel_fixedram.boot.taken import taken_hint
from parallel_fixedram.core.disks import Disk
from parallel_fixedram.core.errors import HostError

_NAME = "qemu-img"


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlay:
    """A qcow2 image on another image, which is only read: it holds what differs from that."""

    path: str
    image: str
    format: str
    """QEMU's block driver for the other image."""

    def command(self, qemu_img: str, path: str = "") -> list[str]:
        """What makes it; at ``path`` instead of its own, if given."""
        formats = ("-f", "qcow2", "-F", self.format)
        return [qemu_img, "create", "-q", *formats, "-b", self.image, path or self.path]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedOverlays:
    """Overlays of all guests that are started together; empty where they have none."""

    recorded: tuple[Disk, ...] = ()
    """The disks that they are for."""
    overlays: tuple[tuple[Overlay, ...], ...] = ()
    """Of each guest, in the order of the disks."""
    qemu_img: str = ""

    def commands(self) -> list[list[str]]:
        """What makes them, and their folders."""
        every = [each for own in self.overlays for each in own]
        folders = dict.fromkeys(os.path.dirname(each.path) for each in every)
        return [
            *(["mkdir", "-p", "-m", "700", folder] for folder in folders),
            *(each.command(self.qemu_img) for each in every),
        ]

    def paths(self) -> list[str]:
        """Of all overlays."""
        return [each.path for own in self.overlays for each in own]

    def contents(self, guests: int, folder: str) -> list[dict[str, bytes]]:
        """What is in the overlays of each guest, by path: the same in all that are on one image.

        Args:
            guests: how many there are.
            folder: where there is room for one of each, for a moment.

        Raises:
            HostError: qemu-img refuses, or cannot be run.
        """
        made: dict[str, bytes] = {}
        if not self.overlays:
            return [{}] * guests
        with tempfile.TemporaryDirectory(dir=folder) as room:
            for each in self.overlays[0]:
                path = os.path.join(room, str(len(made)))
                _run(each.command(self.qemu_img, path), f"cannot make an overlay on {each.image!r}")
                with open(path, "rb") as file:
                    made[each.image] = file.read()
        return [{each.path: made[each.image] for each in own} for own in self.overlays]

    def hint(self, message: str) -> str:
        """What to do if a message of QEMU's is about an overlay or its image; empty if it is about something else."""
        if not self.overlays:
            return ""
        if re.search(r"failed to get .*lock", message, re.IGNORECASE):  # which image it is, only its log has, at best
            images = ", ".join(repr(each.image) for each in self.overlays[0])
            return f"another process writes to an image that the file records ({images}): end that one"
        if "Permission denied" in message and any(path in message for path in self.paths()):
            return "give --disk-folder a folder that QEMU's user may enter"
        return "give --disk-folder a folder on a file system with O_DIRECT" if "not support O_DIRECT" in message else ""


def find_qemu_img(command: Sequence[str]) -> str:
    """The qemu-img beside the QEMU of a command line, or else the one in PATH.

    Raises:
        HostError: there is none.
    """
    qemus = [shutil.which(word) for word in command if os.path.basename(word).startswith(("qemu-system-", "qemu-kvm"))]
    folders = [os.path.dirname(path) for path in qemus if path]
    if found := shutil.which(_NAME, path=os.pathsep.join([*folders, os.environ.get("PATH", os.defpath)])):
        return found
    raise HostError(
        f"{_NAME}, which makes the overlays that guests write to, is neither beside QEMU nor in PATH",
        hint="install qemu-utils; or --disks none leaves the disks as the command line has them",
    )


def backing_chain(path: str, format: str, qemu_img: str) -> list[tuple[str, str]]:
    """Path and format of an image and of those behind it, top first, as their headers say.

    Raises:
        HostError: qemu-img refuses, or cannot be run.
    """
    command = [qemu_img, "info", "--force-share", "--backing-chain", "--output=json", "-f", format, path]
    found: list[dict[str, Any]] = json.loads(_run(command, f"cannot tell what is behind {path!r}"))
    return [(each["filename"], each["format"]) for each in found]


def _run(command: Sequence[str], what: str) -> bytes:
    import subprocess  # slow to import, and boots without overlays do without it

    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    except OSError as error:
        raise HostError.from_os(f"cannot run {command[0]!r}", error) from error
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        said = "; ".join(line.removeprefix(f"{_NAME}: ") for line in lines) or f"it ended with {done.returncode}"
        raise HostError(f"{what}: {_NAME}: {said}", hint=taken_hint(said, clones=False))
    return done.stdout
