"""Overlays for guests that we start, made by the qemu-img that belongs to their QEMU."""

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
class GuestOverlay:
    """A qcow2 image with another image, which is only read, as backing file."""

    path: str
    image: str
    format: str
    """QEMU's block driver for the backing file."""

    def command(self, qemu_img: str, path: str = "") -> list[str]:
        """The command that makes it, at ``path`` if given instead of its own."""
        formats = ("-f", "qcow2", "-F", self.format)
        return [qemu_img, "create", "-q", *formats, "-b", self.image, path or self.path]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedOverlays:
    """Overlays of all guests that are started together; empty if they have none."""

    recorded: tuple[Disk, ...] = ()
    """The disks that they are for."""
    overlays: tuple[tuple[GuestOverlay, ...], ...] = ()
    """For each guest, in the order of the disks."""
    qemu_img: str = ""

    def commands(self) -> list[list[str]]:
        """The commands that make them and their folders."""
        every = [each for own in self.overlays for each in own]
        folders = dict.fromkeys(os.path.dirname(each.path) for each in every)
        return [
            *(["mkdir", "-p", "-m", "700", folder] for folder in folders),
            *(each.command(self.qemu_img) for each in every),
        ]

    def paths(self) -> list[str]:
        """Paths of all overlays."""
        return [each.path for own in self.overlays for each in own]

    def contents(self, guests: int, folder: str) -> list[dict[str, bytes]]:
        """Contents of each guest's overlays, by path; all overlays on the same image have the same contents.

        Args:
            guests: number of guests.
            folder: for temporary files, one for each image.

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
        """What to do if QEMU's message is about an overlay or its image; otherwise empty."""
        if not self.overlays:
            return ""
        if re.search(r"failed to get .*lock", message, re.IGNORECASE):  # at best only the log tells which image
            images = ", ".join(repr(each.image) for each in self.overlays[0])
            return f"another process writes to an image that the file records ({images}): end that process"
        if "Permission denied" in message and any(path in message for path in self.paths()):
            return "choose a --disk-folder that QEMU's user may enter"
        return "choose a --disk-folder on a file system with O_DIRECT" if "not support O_DIRECT" in message else ""


def find_qemu_img(command: Sequence[str]) -> str:
    """The qemu-img next to the QEMU of a command line, or else the one in PATH.

    Raises:
        HostError: there is none.
    """
    qemus = [shutil.which(word) for word in command if os.path.basename(word).startswith(("qemu-system-", "qemu-kvm"))]
    folders = [os.path.dirname(path) for path in qemus if path]
    if found := shutil.which(_NAME, path=os.pathsep.join([*folders, os.environ.get("PATH", os.defpath)])):
        return found
    raise HostError(
        f"{_NAME}, which makes the overlays that guests write to, is neither next to QEMU nor in PATH",
        hint="install qemu-utils; or --disks none leaves the disks as the command line has them",
    )


def backing_chain(path: str, format: str, qemu_img: str) -> list[tuple[str, str]]:
    """Path and format of an image and its backing files, top first, according to their headers.

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
