"""LibvirtOverlays: images that the disks of a domain go on with from one instant on, and that libvirt knows of.

::

    before:  qemu-img makes an image of no contents                                    the guest runs
    pause:   a snapshot of the disks alone, external, by libvirt, which takes these images
    after:   disk --> overlay --> image, in libvirt's definition too

libvirt gives the images to the domain's user and labels them. It merges them back, too: ``virDomainBlockCommit``.
Source: libvirt src/qemu/qemu_snapshot.c.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator, Mapping

from parallel_fixedram.core.errors import FixedRamError, HostError
from parallel_fixedram.core.observer import Observer
from parallel_fixedram.core.words import shown
from parallel_fixedram.machines.qemu.drives import Drive, find_drives
from parallel_fixedram.machines.qemu.monitor import Monitor
from parallel_fixedram.machines.qemu.overlays import Overlay, Overlays
from parallel_fixedram.machines.qemu.session import TimedOut

_LOOK_SECONDS = 0.2
"""How often libvirt is asked how far a merge is."""


class LibvirtOverlays(Overlays):
    """DiskOverlays of a domain; a context manager. On leaving, overlays that are not in use are removed."""

    def _make(self, overlay: Overlay) -> None:
        """Make an image without contents in the file; should we be killed before it is used, the bridge removes it."""
        self._monitor.execute("libvirt-will-make", {"path": overlay.path})
        image = overlay.drive.disk.images[0]
        backing = ["-b", os.path.abspath(image.path), "-F", image.format, "-u"]
        command = ["qemu-img", "create", "-q", "-f", "qcow2", *backing, overlay.path, str(overlay.drive.disk.size)]
        what = f"overlay {overlay.path!r} cannot be made"
        try:
            ended = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        except FileNotFoundError as error:
            raise HostError(f"{what}: qemu-img is not installed", hint="Debian's package is qemu-utils") from error
        except OSError as error:
            raise HostError.from_os(what, error) from error
        if ended.returncode:
            raise HostError(f"{what}: {shown(ended.stderr)}")

    def _switch(self) -> None:
        """Have libvirt take a snapshot of the disks."""
        overlays = {each.drive.disk.device: each.path for each in self._ready}
        self._monitor.execute("libvirt-snapshot", {"overlays": overlays})

    def _is_on_them(self) -> bool:
        """Whether each disk goes on with its overlay, and no other disk has come; libvirt names the nodes itself."""
        drives = [each.disk for each in find_drives(self._monitor, self._pid) if not each.shared]
        now = {each.device: [image.path for image in each.images[:1]] for each in drives}
        return now == {each.drive.disk.device: [each.path] for each in self._frozen}

    def _remove(self, overlay: Overlay) -> bool:
        """Remove an overlay that no disk goes on with; returns whether that is done."""
        if self._asked:
            try:
                drives = find_drives(self._monitor, self._pid)
            except FixedRamError:
                return False
            if any(overlay.path == image.path for each in drives for image in each.disk.images):
                return False
        with contextlib.suppress(OSError):
            os.unlink(overlay.path)
        return True


def merge(monitor: Monitor, drive: Drive, into: int, what: str, observer: Observer) -> int:
    """Have libvirt merge the top image of a disk into one below it; returns how many bytes it copied.

    Args:
        monitor: of the domain.
        drive: the disk.
        into: number of the image that it is merged into, from the top.
        what: failed, for messages.
        observer: hears how far it is.

    Raises:
        MachineError: libvirt refuses or fails; the disk goes on as it is.
    """
    disk, done, whole = {"device": drive.disk.device}, 0, 0
    monitor.execute("libvirt-commit", {**disk, "base": drive.disk.images[into].path})
    try:
        for at, total in _follow(monitor, disk, what):
            if total != whole:
                observer.phase("commit", total)
                whole, done = total, 0
            observer.advanced(at - done)
            done = at
        monitor.execute("libvirt-commit-end", {**disk, "pivot": True})
    except BaseException:
        with contextlib.suppress(FixedRamError):  # there may be no job any more, or no domain
            monitor.execute("libvirt-commit-end", {**disk, "pivot": False})
        raise
    return done


def _follow(monitor: Monitor, disk: Mapping[str, str], what: str) -> Iterator[tuple[int, int]]:
    """How far a merge is and how far it goes, bytes, until the disk can go on with the image below."""
    with monitor.listen("BLOCK_JOB_READY", "BLOCK_JOB_ERROR", "JOB_STATUS_CHANGE") as events:
        while True:
            match monitor.execute("libvirt-commit-state", disk):
                case {"cur": int(at), "end": int(total), "ready": bool(ready)}:
                    yield at, total
                case _:
                    raise monitor.error(f"{what}: libvirt gave it up")
            if ready:
                return
            with contextlib.suppress(TimedOut):
                events.wait(_LOOK_SECONDS)
