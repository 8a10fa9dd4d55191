"""``stop`` flushes disks while the guest stands still: what it would flush is synced before."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.disks import on_disk
from support.faults import Call, Fail, Run, Stop
from support.qemu import QemuProcess, require_tool
from support.qemu_saved import in_turn
from support.qemu_tools import with_own_mounts
from support.system_calls import answered

import parallel_fixedram
from parallel_fixedram.core.reports.save import SaveReport
from parallel_fixedram.core.save_options import Disks, DisksMode
from parallel_fixedram.experiments.boot_sector import disk_image
from parallel_fixedram.machines.qemu import disks
from parallel_fixedram.machines.qemu.machine import QemuMachine

MIB = 1 << 20


class Calls:
    """What happened in which order, in whichever process: inode numbers of files that were synced, and ``stop``."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._path = path
        fdatasync, pause = os.fdatasync, QemuMachine.pause

        def sync(fd: int) -> None:
            fdatasync(fd)
            self._note(str(os.fstat(fd).st_ino))

        def stop(machine: QemuMachine) -> bool:
            self._note("stop")
            return pause(machine)

        monkeypatch.setattr(os, "fdatasync", sync)
        monkeypatch.setattr(QemuMachine, "pause", stop)

    def _note(self, what: str) -> None:
        with open(self._path, "a", encoding="ascii") as file:
            file.write(f"{what}\n")

    def before_stop(self) -> set[int]:
        """Inodes of the files that were synced before the guest was stopped."""
        lines = self._path.read_text().splitlines()
        return {int(line) for line in lines[: lines.index("stop")]}


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Calls:
    return Calls(tmp_path / "calls", monkeypatch)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    with on_disk(tmp_path) as found:
        yield found


def save(guest: QemuProcess, path: Path) -> SaveReport:
    disks = Disks(mode=DisksMode.NONE)
    return parallel_fixedram.save(
        lambda: parallel_fixedram.open_qemu(os.fspath(guest.monitor_path)), os.fspath(path), disks=disks
    )


def image(path: Path, size: int = 64 * MIB) -> Path:
    with open(path, "wb") as file:
        file.truncate(size)
    return path


def dirty(guest: QemuProcess, disk: str) -> None:
    """Have it write to a disk."""
    before = guest.stderr()
    assert guest.hmp(f'qemu-io {disk} "write -P 1 0 8M"') == ""
    assert "wrote 8388608/8388608 bytes" in guest.stderr().removeprefix(before)


def drive(path: object, *more: str) -> tuple[str, ...]:
    return ("-drive", ",".join((f"file={path},format=raw,if=virtio,id=disk,cache=writeback", *more)))


class TestSynced:
    def test_a_disk_that_the_guest_goes_on_writing_is_synced_before_it_is_stopped(
        self, qemu_binary: str, folder: Path, calls: Calls, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = folder / "disk"
        path.write_bytes(disk_image())
        monkeypatch.setattr(disks, "MOST_SECONDS", 300.0)  # however busy the disk is
        with QemuProcess(*drive(path)) as guest:
            guest.wait_serial("[A-Z]{3}")
            report = save(guest, folder / "saved")
            assert in_turn(guest.take_serial() + guest.wait_serial("[A-Z]{3}")[0])
        assert path.stat().st_ino in calls.before_stop()
        assert report.seconds.sync_disks > 0
        assert not [note for note in report.notes if "disk" in note and "synced" in note]

    @pytest.mark.parametrize("kind", ["removed", "renamed", "from a folder it has left", "node", "descriptor"])
    def test_whatever_it_is_called(self, ticker: list[str], folder: Path, calls: Calls, kind: str) -> None:
        path = image(folder / "disk")
        inode, fds = path.stat().st_ino, [os.open(path, os.O_RDWR), os.open(path, os.O_RDONLY)]
        args = drive(path)
        if kind == "from a folder it has left":
            args = drive(os.path.relpath(path, "/tmp/folder"))
        elif kind == "node":
            node = {"driver": "raw", "node-name": "disk", "file": {"driver": "file", "filename": os.fspath(path)}}
            args = ("-blockdev", json.dumps(node), "-device", "virtio-blk-pci,drive=disk,share-rw=on")
        elif kind == "descriptor":
            args = (*(each for fd in fds for each in ("-add-fd", f"fd={fd},set=7")), *drive("/dev/fdset/7"))
        with QemuProcess(*ticker, *args, descriptors=fds if kind == "descriptor" else ()) as guest:
            for fd in fds:
                os.close(fd)
            dirty(guest, "disk")
            if kind == "removed":
                path.unlink()
            elif kind == "renamed":
                path.rename(folder / "other")
                image(path)
            save(guest, folder / "saved")
        assert inode in calls.before_stop()

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can have another mount namespace")
    def test_in_another_mount_namespace(self, ticker: list[str], folder: Path, calls: Calls) -> None:
        path, unseen = image(folder / "disk"), folder / "unseen"
        unseen.mkdir()
        there = ["sh", "-c", f'mount --bind {folder} {unseen} && exec "$@"', "sh"]
        with QemuProcess(*ticker, *drive(unseen / "disk"), wrapper=[*with_own_mounts(), *there]) as guest:
            assert not (unseen / "disk").exists()
            dirty(guest, "disk")
            save(guest, folder / "saved")
        assert path.stat().st_ino in calls.before_stop()

    def test_of_several_all_that_are_flushed_and_written(self, ticker: list[str], folder: Path, calls: Calls) -> None:
        base, top, unsafe = image(folder / "base"), folder / "top", image(folder / "unsafe")
        qcow2 = ("-q", "-f", "qcow2", "-b", base, "-F", "raw", top)
        subprocess.run([require_tool("qemu-img"), "create", *qcow2], check=True)
        more = (
            *("-drive", f"file={top},format=qcow2,if=virtio,id=top"),
            *("-drive", f"file={unsafe},format=raw,if=virtio,id=unsafe,cache=unsafe"),
        )
        with QemuProcess(*ticker, *more) as guest:
            dirty(guest, "top")
            dirty(guest, "unsafe")
            save(guest, folder / "saved")
        found = calls.before_stop()
        assert top.stat().st_ino in found
        assert not {base.stat().st_ino, unsafe.stat().st_ino} & found

    def test_a_guest_without_disks_and_one_that_stands_still_wait_for_nothing(
        self, ticker: list[str], folder: Path, calls: Calls
    ) -> None:
        path = image(folder / "disk")
        with QemuProcess(*ticker) as guest:
            save(guest, folder / "without")
        assert calls.before_stop() == set()
        with QemuProcess(*ticker, *drive(path), paused=True) as guest:
            save(guest, folder / "still")
        assert path.stat().st_ino not in calls.before_stop()


class TestTold:
    @pytest.mark.parametrize(
        ("what", "said"),
        [("fails", "cannot be synced: input/output error"), ("hangs", "is not in sync after 0.1 s")],
    )
    def test_a_disk_that_cannot_be_synced_is_a_note_and_the_guest_is_saved(
        self, ticker: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch, what: str, said: str
    ) -> None:
        path = image(folder / "disk")

        def decide(call: Call, _: Run) -> Fail | Stop | None:
            if call.name != "fdatasync":
                return None
            return Fail(errno.EIO) if what == "fails" else Stop([call.pid])

        monkeypatch.setattr(disks, "MOST_SECONDS", 0.1 if what == "hangs" else 60.0)
        with QemuProcess(*ticker, *drive(path)) as guest:
            report = answered(lambda: save(guest, folder / "saved"), decide, under=str(path)).value
            assert guest.status() == "running"
        told = [note for note in report.notes if repr(str(path)) in note]  # what else QEMU writes may be late, too
        assert told == [f"before the guest is stopped, disk '{path}' {said}"]
        assert parallel_fixedram.verify(os.fspath(folder / "saved")).ok

    def test_a_disk_behind_a_server_is_named(
        self, ticker: list[str], tmp_path: Path, folder: Path, calls: Calls
    ) -> None:
        server, path, pid = tmp_path / "nbd", image(folder / "disk"), tmp_path / "pid"
        subprocess.run(
            [
                *(require_tool("qemu-storage-daemon"), "--daemonize", "--pidfile", pid),
                *("--blockdev", f"driver=file,node-name=disk,filename={path}"),
                *("--nbd-server", f"addr.type=unix,addr.path={server}"),
                *("--export", "type=nbd,id=e,node-name=disk,writable=on"),
            ],
            check=True,
            capture_output=True,
        )
        pidfd = os.pidfd_open(int(pid.read_text()))
        try:
            disk = ("-blockdev", f"driver=nbd,node-name=far,server.type=unix,server.path={server},export=disk")
            with QemuProcess(*ticker, *disk, "-device", "virtio-blk-pci,drive=far") as guest:
                report = save(guest, folder / "saved")
        finally:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            os.close(pidfd)
        assert (
            "disk 'far' is accessed by nbd: it cannot be synced from here before the guest is stopped" in report.notes
        )
        assert path.stat().st_ino not in calls.before_stop()

    @pytest.mark.parametrize("long", [True, False])
    def test_a_long_stop_is_explained(
        self, ticker: list[str], folder: Path, long_stop: Callable[[float], None], long: bool
    ) -> None:
        long_stop(0.0 if long else 1e9)
        with QemuProcess(*ticker) as guest:
            report = save(guest, folder / "saved")
        said = [note for note in report.notes if "QEMU completes the requests of all disks and flushes them" in note]
        assert len(said) == long


def test_what_qemu_would_not_flush_is_known_by_its_name_in_every_form() -> None:
    is_: Callable[[Any, Any], bool] = disks._is
    assert is_("/a/b.img", "/a/b.img")
    assert is_("/a/b.img", "b.img")
    assert is_("/var/tmp/vl.1 (deleted)", "/var/tmp/vl.1")
    assert not is_("/a/b.img", "/b.img")
    assert not is_("/a/xb.img", "b.img")
