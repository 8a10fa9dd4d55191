"""LibvirtOverlays: images that a domain's disks write to from one instant on, with libvirt's knowledge.

::

    before:  qemu-img makes an empty image                                             the guest runs
    pause:   libvirt takes an external, disk-only snapshot, into these images
    after:   disk --> overlay --> image, in libvirt's definition too

libvirt gives the images to the domain's user and labels them. It also merges them back: ``virDomainBlockCommit``.
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
from parallel_fixedram.machines.qemu.jobs import show_merge
from parallel_fixedram.machines.qemu.monitor import Monitor
from parallel_fixedram.machines.qemu.overlays import Overlay, Overlays
from parallel_fixedram.machines.qemu.session import TimedOut

_LOOK_SECONDS = 0.2
"""How often libvirt is asked for a merge's progress."""


class LibvirtOverlays(Overlays):
    """DiskOverlays of a domain; a context manager. When it is left, overlays that are not in use are removed."""

    def _make(self, overlay: Overlay) -> None:
        """Make an empty image in the file. If we are killed before it is used, the bridge removes it."""
        self._monitor.execute("libvirt-will-make", {"path": overlay.path})
        image = overlay.drive.disk.images[0]
        backing = ["-b", os.path.abspath(image.path), "-F", image.format, "-u"]
        command = ["qemu-img", "create", "-q", "-f", "qcow2", *backing, overlay.path, str(overlay.drive.disk.size)]
        what = f"cannot make overlay {overlay.path!r}"
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
        """Whether each disk is on its overlay, and no disk was added. Node names say nothing: libvirt chooses them."""
        drives = [each.disk for each in find_drives(self._monitor, self._pid) if not each.shared]
        now = {each.device: [image.path for image in each.images[:1]] for each in drives}
        return now == {each.drive.disk.device: [each.path] for each in self._frozen}

    def _remove(self, overlay: Overlay) -> bool:
        """Remove an overlay unless a disk is on it; returns whether it was removed."""
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
    """Have libvirt merge the top image of a disk into one below it; returns the number of bytes copied.

    Args:
        monitor: of the domain.
        drive: the disk.
        into: index of the image to merge into, counted from the top.
        what: the beginning of an error message.
        observer: told about progress.

    Raises:
        MachineError: libvirt refuses or fails; the disk stays as it is.
    """
    disk = {"device": drive.disk.device}
    monitor.execute("libvirt-commit", {**disk, "base": drive.disk.images[into].path})
    try:
        done = show_merge(_follow(monitor, disk, what), observer)
        monitor.execute("libvirt-commit-end", {**disk, "pivot": True})
    except BaseException:
        with contextlib.suppress(FixedRamError):  # the job, or the domain, may be gone
            monitor.execute("libvirt-commit-end", {**disk, "pivot": False})
        raise
    return done


def _follow(monitor: Monitor, disk: Mapping[str, str], what: str) -> Iterator[tuple[int, int]]:
    """Bytes merged so far and in all, again and again until the disk can switch to the image below."""
    with monitor.listen("BLOCK_JOB_READY", "BLOCK_JOB_ERROR", "JOB_STATUS_CHANGE") as events:
        while True:
            match monitor.execute("libvirt-commit-state", disk):
                case {"cur": int(at), "end": int(total), "ready": bool(ready)}:
                    yield at, total
                case _:
                    raise monitor.error(f"{what}: libvirt gave up")
            if ready:
                return
            with contextlib.suppress(TimedOut):
                events.wait(_LOOK_SECONDS)
