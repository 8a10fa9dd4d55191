"""Overlays: qcow2 images that a running QEMU's disks write to from one instant on.

::

    before:  disk --> image                                       the guest runs
             overlay made, opened, formatted                      an empty file, by QEMU's own jobs
    pause:   transaction { blockdev-snapshot, one for each disk }
    after:   disk --> overlay --> image                           nobody writes to the image any more

An overlay is ``IMAGE.SNAPSHOT.qcow2``, by default beside its image; SNAPSHOT contains the time. By this name we
recognise it later as ours, and while QEMU lives also by its node's name.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self

from parallel_fixedram.core.disks import Disk
from parallel_fixedram.core.errors import FixedRamError, HostError, MachineChanged, MachineError
from parallel_fixedram.host.files.handed_over import made_for, sync
from parallel_fixedram.host.files.image_facts import image_now
from parallel_fixedram.host.processes import forked, signals
from parallel_fixedram.machines.qemu.discovery import listed
from parallel_fixedram.machines.qemu.drives import Drive, find_drives, nodes_in_use, used_nodes
from parallel_fixedram.machines.qemu.jobs import find_job, run_job
from parallel_fixedram.machines.qemu.monitor import Monitor

PREFIX = "fixedram-"
"""Prefix of our snapshots' names, and so of our nodes' names."""

_SUFFIX = re.compile(rf"\.{PREFIX}\d{{8}}-\d{{6}}[a-z]?\.qcow2$")
_FILE = ".f"
"""Suffix of the name of the node for an overlay's file."""

_LETTERS = ("", *"abcdefghijklmnopqrstuvwxyz")
COMMIT = "`disks commit` merges overlays into their images, and removes unused ones"


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlay:
    """An overlay for one disk, and the names of its nodes in QEMU."""

    drive: Drive
    path: str
    node: str

    @property
    def file_node(self) -> str:
        """Name of the node for the file."""
        return self.node + _FILE


def is_ours(path: str) -> bool:
    """Whether a file is one of our overlays, by its name."""
    return _SUFFIX.search(path) is not None


def overlays_of_ours(disk: Disk) -> int:
    """How many of a disk's images, from the top, are our overlays."""
    return next((number for number, each in enumerate(disk.images) if not is_ours(each.path)), len(disk.images))


class Overlays:
    """DiskOverlays of a QEMU; a context manager. When it is left, overlays that are not in use are removed.

    Args:
        monitor: of the QEMU.
        pid: its process.
        folder: where to make the overlays; None for beside each image.
    """

    def __init__(self, monitor: Monitor, pid: int, folder: str | None) -> None:
        self._monitor = monitor
        self._pid = pid
        self._folder = folder
        self._ready: list[Overlay] = []
        self._frozen: list[Overlay] = []
        self._shared: list[str] = []
        self._paths: list[str] = []
        self._written: list[tuple[int, int]] = []
        self._asked = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        left = [each.path for each in self._ready if not self._remove(each)]
        if isinstance(error, FixedRamError) and (paths := [*self._paths, *left]):
            error.hint = "; ".join(filter(None, (error.hint, f"disks are now on {', '.join(paths)}: {COMMIT}")))

    def prepare(self) -> Sequence[str]:
        """Make overlays for all disks, unless unused ones are there already (DiskOverlays.prepare)."""
        if self._ready:
            return ()
        drives = find_drives(self._monitor, self._pid)
        own = [each for each in drives if not each.shared]
        for drive in own:
            if drive.why_not:
                raise MachineError(
                    f"{self._monitor.name!r}: disk {drive.disk.device!r} cannot be put on an overlay: {drive.why_not}",
                    hint="--disks none saves the guest without its disks",
                )
        left = left_overlays(self._monitor, drives)
        for each in _planned(self._monitor, own, self._folder):
            with contextlib.ExitStack() as stack:
                with signals.held():
                    stack.enter_context(made_for(self._pid, each.path))  # held until QEMU has it open
                    self._ready.append(each)  # before _make, so that a half-made overlay is removed as well
                self._make(each)
        self._shared = [each.disk.device for each in drives if each.shared]
        return [
            *(f"disk {name!r} is shared with other guests (share-rw): it is not saved" for name in self._shared),
            *(f"{path!r} is left from a save that was killed: {COMMIT}" for path in left),
        ]

    def freeze(self) -> None:
        """Put all disks on their overlays at once (DiskOverlays.freeze)."""
        if not self._ready:
            return
        # before the answer: from here on disks may be on overlays, even if we never hear it
        self._asked = True
        self._switch()
        self._frozen, self._ready = self._ready, []
        self._paths += [each.path for each in self._frozen]
        self._written = _last_written(self._frozen)

    def frozen(self, *, durable: bool) -> tuple[tuple[Disk, str], ...]:
        """The disks as they were then, and their overlays (DiskOverlays.frozen)."""
        disks = tuple((_as_it_is(each.drive.disk, durable=durable), each.path) for each in self._frozen)
        on_them = self._is_on_them()  # check this last: somebody may merge an overlay while we read the images
        if not on_them or _last_written(self._frozen) != self._written:
            raise MachineChanged("somebody changed the guest's disks while it was being saved")
        return disks

    def _switch(self) -> None:
        """Put all disks on the prepared overlays at once."""
        actions = [
            {"type": "blockdev-snapshot", "data": {"node": each.drive.disk.node, "overlay": each.node}}
            for each in self._ready
        ]
        self._monitor.execute("transaction", {"actions": actions})

    def _is_on_them(self) -> bool:
        """Whether each disk is on its overlay, and no disk was added."""
        now = nodes_in_use(self._monitor)
        expected = {each.drive.disk.device: each.node for each in self._frozen}
        return {name: node for name, node in now.items() if name not in self._shared} == expected

    def _make(self, overlay: Overlay) -> None:
        """Have QEMU make an empty image in the file, and open it."""
        drive = overlay.drive
        cache = dict(drive.cache)
        self._monitor.execute(
            "blockdev-add",
            {"driver": "file", "node-name": overlay.file_node, "filename": overlay.path, "cache": cache},
        )
        image = drive.disk.images[0]
        options = {
            "driver": "qcow2",
            "file": overlay.file_node,
            "size": drive.disk.size,
            "backing-file": image.path,
            "backing-fmt": image.format,
        }
        run_job(
            self._monitor,
            f"cannot make overlay {overlay.path!r}",
            lambda name: self._monitor.execute("blockdev-create", {"job-id": name, "options": options}),
            overlay.node,
        )
        self._monitor.execute(
            "blockdev-add",
            {
                "driver": "qcow2",
                "node-name": overlay.node,
                "file": overlay.file_node,
                "backing": None,
                "cache": cache,
            },
        )

    def _remove(self, overlay: Overlay) -> bool:
        """Remove an overlay unless a disk is on it; returns whether it was removed."""
        try:
            remove_nodes(self._monitor, overlay.node)
        except MachineError:  # it is in use, or QEMU is gone
            if self._asked or not _has_ended(self._monitor):
                return False
        with contextlib.suppress(OSError):
            os.unlink(overlay.path)
        return True


def _planned(monitor: Monitor, drives: Sequence[Drive], folder: str | None) -> Iterator[Overlay]:
    """An overlay for each drive, under unused names."""
    nodes = {str(each.get("node-name")) for each in listed(monitor, "query-named-block-nodes", {"flat": True})}
    stamp = time.strftime(f"{PREFIX}%Y%m%d-%H%M%S")
    for letter in _LETTERS:
        snapshot = stamp + letter
        planned = [
            Overlay(drive=each, path=_path(each, snapshot, folder), node=f"{snapshot}.{number}")
            for number, each in enumerate(drives)
        ]
        if not any(os.path.lexists(each.path) or each.node in nodes for each in planned):
            return iter(planned)
    raise HostError(f"all names like {planned[0].path!r} are taken")


def _path(drive: Drive, snapshot: str, folder: str | None) -> str:
    image = _SUFFIX.sub("", drive.disk.images[0].path)
    if not folder and _is_device(image):
        raise MachineError(
            f"disk {drive.disk.device!r} is the device {image!r}, beside which no overlay can be made",
            hint="choose a folder with --disk-folder DIR",
        )
    return os.path.join(
        os.path.abspath(folder or os.path.dirname(image)), f"{os.path.basename(image)}.{snapshot}.qcow2"
    )


def left_overlays(monitor: Monitor, drives: Sequence[Drive]) -> dict[str, str]:
    """Overlays that were made and that no disk uses: path of the file -> name of its node, empty if QEMU has none.

    Args:
        monitor: of the QEMU.
        drives: empty files beside their images are looked for as well.

    Raises:
        MachineError: QEMU does not answer.
    """
    used, left = used_nodes(monitor), dict.fromkeys(_empty_files(drives), "")
    for each in listed(monitor, "query-named-block-nodes", {"flat": True}):
        name = str(each.get("node-name"))
        if name.startswith(PREFIX) and name.endswith(_FILE) and not {name, name.removesuffix(_FILE)} & used:
            left[str(each.get("file"))] = name.removesuffix(_FILE)
    return left


def _empty_files(drives: Sequence[Drive]) -> Iterator[str]:
    """Overlays of length 0: made, but not formatted yet."""
    for folder in sorted({os.path.dirname(each.path) for drive in drives for each in drive.disk.images[:1]}):
        with contextlib.suppress(OSError):
            for found in os.scandir(folder):
                if is_ours(found.name) and found.is_file(follow_symlinks=False) and not found.stat().st_size:
                    yield found.path


def remove_nodes(monitor: Monitor, node: str) -> None:
    """Have QEMU close an overlay and its file, if it has them open; ``node`` may be empty.

    Raises:
        MachineError: they are in use, or QEMU does not answer.
    """
    if (job := find_job(monitor, node)) and job.get("status") == "concluded":
        monitor.execute("job-dismiss", {"id": node})
    known = {str(each.get("node-name")) for each in listed(monitor, "query-named-block-nodes", {"flat": True})}
    for name in (node, node + _FILE):
        if name in known:
            monitor.execute("blockdev-del", {"node-name": name})


def _last_written(overlays: Sequence[Overlay]) -> list[tuple[int, int]]:
    """Time of the last write and length of each image below them: nobody may write to one after the instant."""
    found = []
    for image in (image for each in overlays for image in each.drive.disk.images):
        try:
            status = os.stat(image.path)
        except OSError as error:
            raise HostError.from_os(f"cannot look at image {image.path!r}", error) from error
        found.append((status.st_mtime_ns, status.st_size))
    return found


def _is_device(path: str) -> bool:
    return os.path.exists(path) and stat.S_ISBLK(os.stat(path).st_mode)


def _has_ended(monitor: Monitor) -> bool:
    return monitor.pidfd is not None and forked.has_ended(monitor.pidfd, 0)


def _as_it_is(disk: Disk, *, durable: bool) -> Disk:
    """The disk with the present state of its images, which nobody writes to any more."""
    path = disk.images[0].path
    try:
        if durable:  # QEMU flushed it when the guest was stopped, except with cache=unsafe
            sync(path)
    except OSError as error:
        raise HostError.from_os(f"disk {disk.device!r}: {path!r} cannot be synced", error) from error
    return replace(disk, images=tuple(image_now(each.path, each.format) for each in disk.images))
