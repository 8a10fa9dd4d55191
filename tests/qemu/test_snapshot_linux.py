"""A snapshot of a guest that has drivers: its balloon, its disks, memory that is plugged in and out, two processors.

Its RAM is of two kinds, a memfd and private memory. Free memory of it is dirty (init_on_alloc=0), so that what is
discarded, or read into it, without a copy would be seen.
"""

from __future__ import annotations

import hashlib
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.cli import call, done, refused
from support.examples import thorough
from support.qemu import QemuProcess, Ram
from support.qemu_linux import LinuxGuest
from support.qemu_reader import read_stored
from support.qemu_saved import KNOWN_MIB, wait_tick
from support.snapshots import SECONDS, Saved, When, argv, unharmed
from support.watched import require_userfaultfd

import parallel_fixedram
from parallel_fixedram.core.errors import SnapshotFailed

MIB = 1 << 20
NODE = 128 * MIB
DISK = random.Random("disk").randbytes(4 * MIB)
AIO = ("threads", "native", "io_uring")
DIRTY = 24
"""MiB that are written and freed."""
REPORTED = 64
DISCARDED = "memory of the guest was discarded while it was captured"
BALLOON = "virtio-balloon-pci"


@pytest.fixture(scope="module")
def only_guest(linux: LinuxGuest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[QemuProcess]:
    require_userfaultfd()
    disk = tmp_path_factory.mktemp("disk") / "disk"
    disk.write_bytes(DISK)
    disks = [
        each
        for aio in AIO
        for each in (
            *("-drive", f"file={disk},format=raw,if=none,id={aio},cache=none,aio={aio},file.locking=off"),
            *("-device", f"virtio-blk-pci,drive={aio},share-rw=on"),
        )
    ]
    args = (
        *linux.args(size_mib=KNOWN_MIB, tick=0.5, more="virtio init_on_alloc=0"),
        *("-m", f"{2 * NODE // MIB}M,slots=2,maxmem=1G", "-smp", "2"),
        *("-object", f"memory-backend-memfd,id=n0,size={NODE},share=on", "-numa", "node,cpus=0,memdev=n0"),
        *("-object", f"memory-backend-ram,id=n1,size={NODE}", "-numa", "node,cpus=1,memdev=n1"),
        *("-device", f"{BALLOON},id=balloon", *disks),
    )
    with QemuProcess(*args, ram=None, machine="pc") as guest:
        guest.wait_serial(r"tick 1 \w+\r")
        yield guest


@pytest.fixture
def guest(only_guest: QemuProcess) -> Iterator[QemuProcess]:
    """The same for all: it runs on, and its known file is what it was."""
    yield only_guest
    only_guest.take_serial()
    wait_tick(only_guest)


def inflate(guest: QemuProcess, to: int = 2 * NODE - 8 * MIB) -> None:
    """Have the guest give memory back; returns when it has."""
    guest.qmp("balloon", value=to)
    while guest.qmp("query-balloon")["actual"] != to:
        guest.wait_event("BALLOON_CHANGE")


def deflate(guest: QemuProcess) -> None:
    inflate(guest, 2 * NODE)


def dirty_and_free(guest: QemuProcess, mib: int = DIRTY) -> None:
    guest.send_serial(f"dirty {mib}")
    guest.wait_serial(rf"dirtied {mib}\r")
    guest.send_serial("forget")
    guest.wait_serial(r"forgotten\r")


def reads(guest: QemuProcess) -> int:
    """How many bytes of its disks the guest has read."""
    return sum(each["stats"]["rd_bytes"] for each in guest.qmp("query-blockstats"))


def wait_reads(guest: QemuProcess, more: int) -> None:
    """Return when the guest has read so many bytes more than now."""
    goal = reads(guest) + more
    while reads(guest) < goal:
        assert guest.qmp("query-status")["running"]


def test_a_guest_that_reads_its_disks_at_full_speed(guest: QemuProcess, tmp_path: Path, when: When) -> None:
    """QEMU's threads and the kernel write its memory then: their writes wait, too."""
    guest.send_serial("read")
    guest.wait_serial(r"reading\r")
    with unharmed(guest, letters=False):
        for number in range(60 if thorough() else 1):
            when("after cont", lambda _: wait_reads(guest, 2 * len(AIO) * len(DISK)))
            saved = Saved(guest, tmp_path / "saved", channels=2, direct=("on", "off")[number % 2])
            assert saved.snapshot.faults > 0
            assert saved.is_right()
            saved.path.unlink()
    guest.take_serial()
    guest.send_serial("rest")
    for name in "abc":
        assert guest.wait_serial(rf"/dev/vd{name} (\w+)\r")[1] == hashlib.md5(DISK).hexdigest()


class TestABalloon:
    @pytest.fixture(autouse=True)
    def deflated(self, guest: QemuProcess) -> Iterator[None]:
        dirty_and_free(guest)
        yield
        deflate(guest)

    def test_that_is_inflated_before_the_pause_is_in_the_file(
        self, guest: QemuProcess, tmp_path: Path, when: When
    ) -> None:
        when("protected", lambda _: inflate(guest))
        with unharmed(guest, letters=False):
            saved = Saved(guest, tmp_path / "saved")
        assert saved.snapshot
        assert saved.is_right()

    @pytest.mark.parametrize("mode", ["snapshot", "auto"])
    def test_that_is_inflated_after_it_costs_the_snapshot(
        self, guest: QemuProcess, tmp_path: Path, when: When, mode: str
    ) -> None:
        when("after cont", lambda _: inflate(guest))
        with unharmed(guest, letters=False):
            check_void(guest, tmp_path, mode, DISCARDED)


def check_void(guest: QemuProcess, folder: Path, mode: str, why: str) -> None:
    result = call(*argv(guest, folder / "saved", mode, "--json"))
    if mode == "snapshot":
        refused(result, 5, why)
        assert os.listdir(folder) == []
    else:
        saved = done(result).json
        assert saved["choice"]["capture"] == "compare"
        assert any(why in note for note in saved["notes"])


class TestMemoryThatIsPluggedOut:
    @pytest.fixture
    def plugged(self, guest: QemuProcess, request: pytest.FixtureRequest) -> str:
        """A DIMM that holds something."""
        kind = request.param
        more = {"share": True} if kind == "memory-backend-memfd" else {}
        guest.qmp_raw("object-add", {"qom-type": kind, "id": "more", "size": NODE, **more})
        guest.qmp("device_add", driver="pc-dimm", id="dimm", memdev="more", node=0)
        [block] = [block for block in guest.ramblocks() if block.name == "more"]
        with open(f"/proc/{guest.pid}/mem", "r+b", buffering=0) as memory:
            os.pwrite(memory.fileno(), b"plugged in" * MIB, block.hva)
        return kind

    @pytest.mark.parametrize(
        ("plugged", "mode"),
        [("memory-backend-ram", "snapshot"), ("memory-backend-memfd", "auto")],
        indirect=["plugged"],
    )
    def test_is_noticed_and_the_save_begins_again(
        self, guest: QemuProcess, tmp_path: Path, when: When, plugged: str, mode: str
    ) -> None:
        def unplug(_: object) -> None:
            guest.qmp("device_del", id="dimm")
            guest.wait_event("DEVICE_DELETED")
            guest.qmp("object-del", id="more")

        when("after cont", unplug)
        saved = done(call(*argv(guest, tmp_path / "saved", mode, "--json"))).json
        assert saved["choice"]["capture"] == "snapshot"
        told = "memory or devices were plugged in or out while the machine was being saved: the save began again"
        assert told in saved["notes"]
        assert "more" not in read_stored(tmp_path / "saved").blocks
        assert parallel_fixedram.verify(os.fspath(tmp_path / "saved")).ok


@pytest.fixture(scope="module")
def reporting(linux: LinuxGuest) -> Iterator[QemuProcess]:
    """A guest that tells of what is free, also of small pieces: it is too small to have large ones."""
    require_userfaultfd()
    more = "virtio init_on_alloc=0 page_reporting.page_reporting_order=4"
    args = (*linux.args(size_mib=KNOWN_MIB, tick=0.5, more=more), "-device", f"{BALLOON},free-page-reporting=on")
    with QemuProcess(*args, ram=Ram(384 * MIB)) as guest:
        guest.wait_serial(r"tick 1 \w+\r")
        yield guest
        guest.take_serial()
        wait_tick(guest)


class TestFreePageReporting:
    """The guest tells of what it has freed a few seconds later, and QEMU discards it."""

    @staticmethod
    def until_reported(guest: QemuProcess) -> None:
        """What is freed now is gone from QEMU's memory in the end: reports do come."""
        guest.send_serial(f"dirty {REPORTED}")
        guest.wait_serial(rf"dirtied {REPORTED}\r")
        filled, deadline = resident(guest), time.monotonic() + SECONDS
        guest.send_serial("forget")
        while resident(guest) > filled - REPORTED * MIB // 4:
            guest.wait_serial(r"tick \d+ \w+\r")
            assert time.monotonic() < deadline, "no report comes"

    def test_before_the_pause_is_in_the_file(self, reporting: QemuProcess, tmp_path: Path, when: When) -> None:
        """Unless a later report comes after the pause."""
        when("protected", lambda _: self.until_reported(reporting))
        try:
            saved = Saved(reporting, tmp_path / "saved")
        except SnapshotFailed as error:
            said = error.message
        else:
            assert saved.is_right()
            said = f"{saved.snapshot.noted_groups} groups were noted, not 0 groups"
        assert DISCARDED in said or not said.startswith("0 groups")

    def test_after_it_costs_the_snapshot(self, reporting: QemuProcess, tmp_path: Path, when: When) -> None:
        when("after cont", lambda _: self.until_reported(reporting))
        check_void(reporting, tmp_path, "snapshot", DISCARDED)


def resident(guest: QemuProcess) -> int:
    """Bytes of memory that QEMU has."""
    fields = Path(f"/proc/{guest.pid}/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGESIZE")
