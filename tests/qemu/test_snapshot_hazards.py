"""What may happen to QEMU, to its guest and to us while a snapshot is taken: the file is right, or there is none.

The guest runs on whatever happens, and its own memory is right: the ticker's letters stay in turn. What the processes
of a snapshot do to each other is in tests/engine/snapshot; here is what takes a QEMU.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from support import faults
from support.cli import call, done, part_of, refused, untouched
from support.command import happenings
from support.examples import thorough
from support.faults import Forked, before, behind
from support.leftovers import children, descriptors
from support.qemu import QemuError, QemuProcess, Ram, boot_from, require_tool
from support.qemu_boot import BootFolder
from support.qemu_commands import Commands
from support.qemu_reader import read_stored
from support.qemu_saved import WAYS_TO_LOAD, contents, differences, in_turn
from support.qemu_tools import all_qemus
from support.snapshots import Saved, When, argv, killing, ticks, unharmed, watched_mappings
from support.sources import huge_file
from support.watched import require_userfaultfd

import parallel_fixedram
from parallel_fixedram.engine.capture.pause import Pause
from parallel_fixedram.engine.capture.snapshot.job import CaptureJob
from parallel_fixedram.engine.capture.snapshot.snapshot import Snapshot
from parallel_fixedram.engine.capture.write_protect import WriteProtect
from parallel_fixedram.experiments.boot_sector import boot_image
from parallel_fixedram.host.memory import ksm
from parallel_fixedram.image.draft import Draft

pytestmark = pytest.mark.usefixtures("nothing_is_left")

MIB = 1 << 20
LONG = 20.0
FEW = 4
"""Mappings that an allocator may make."""
HUGE = (
    *("-m", "64M", "-machine", "memory-backend=m"),
    *("-object", "memory-backend-memfd,id=m,size=64M,hugetlb=on,hugetlbsize=2M,share=on"),
)


@pytest.fixture(autouse=True)
def needed() -> None:
    require_userfaultfd()


@pytest.fixture(scope="module")
def only_guest(ticker: list[str]) -> Iterator[QemuProcess]:
    with QemuProcess(*ticker) as guest:
        guest.wait_serial("C")
        yield guest


@pytest.fixture
def guest(only_guest: QemuProcess) -> Iterator[QemuProcess]:
    """The same for all: whatever happened to the saves before, it runs, and so it does afterwards."""
    with unharmed(only_guest):
        yield only_guest


def kill(pid: int) -> None:
    """A child of ours, whose end is still to be waited for."""
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


class TestAProcessOfOurs:
    @pytest.mark.parametrize(
        ("who", "signum", "moment", "why"),
        [
            ("_handler", signal.SIGKILL, "protected", "the guest's page faults was killed by SIGKILL"),
            ("_handler", signal.SIGKILL, "in the pause", "the guest's page faults was killed by SIGKILL"),
            ("_handler", signal.SIGSTOP, "in the pause", "did not answer in time and was killed"),
            ("_handler", signal.SIGSTOP, "protected", "did not answer in time and was killed"),
            ("_spill", signal.SIGKILL, "after cont", "writes spilled pages was killed by SIGKILL"),
        ],
    )
    @pytest.mark.parametrize("mode", ["snapshot", "auto"])
    def test_that_dies_or_goes_deaf_costs_the_snapshot(
        self, guest: QemuProcess, tmp_path: Path, when: When, who: str, signum: int, moment: str, why: str, mode: str
    ) -> None:
        when(moment, killing(who, signum))
        stall = ("--max-stall", 0.5 if signum == signal.SIGSTOP else LONG) if mode == "snapshot" else ()
        result = call(*argv(guest, tmp_path / "saved", mode, *stall, "--json"))
        if mode == "snapshot":
            refused(result, 5, why)
            assert os.listdir(tmp_path) == []
        else:
            saved = done(result).json
            assert saved["choice"]["capture"] == "compare"
            assert [why in note and note.endswith(": the save began again") for note in happenings(saved["notes"])] == [
                True
            ]
            assert parallel_fixedram.verify(os.fspath(tmp_path / "saved")).ok

    def test_a_worker_that_dies_costs_nothing(
        self, guest: QemuProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        run, test, (ready, once) = CaptureJob.run, os.getpid(), os.pipe()
        os.write(once, b"!")
        os.set_blocking(ready, False)

        def dying(self: CaptureJob, shard: Any) -> Any:
            result = run(self, shard)  # the pages are in the file, and nobody is told
            with contextlib.suppress(BlockingIOError):
                if os.getpid() != test and os.read(ready, 1):
                    os.kill(os.getpid(), signal.SIGKILL)
            return result

        monkeypatch.setattr(CaptureJob, "run", dying)
        saved = Saved(guest, tmp_path / "saved", channels=2)
        assert saved.snapshot.faults + saved.snapshot.ahead_groups > 0
        assert saved.is_right()
        assert "its shard goes to another one" in caplog.text
        os.close(ready)
        os.close(once)

    @pytest.mark.parametrize(
        "step",
        [
            behind(WriteProtect, "__enter__"),
            before(Pause, "__enter__"),
            behind(WriteProtect, "stopped"),
            before(WriteProtect, "after"),
            before(Snapshot, "end"),
            before(Draft, "finish"),
        ],
        ids=["watched", "protected", "in the pause", "after cont", "captured", "letting go"],
    )
    def test_the_command_itself(self, guest: QemuProcess, tmp_path: Path, step: faults.Moment) -> None:
        file = tmp_path / "saved"

        def die(*_: object) -> None:
            os.kill(os.getpid(), signal.SIGKILL)

        with Forked(*argv(guest, file, "snapshot"), moment=step, act=die) as running:
            assert running.finish().code == -signal.SIGKILL
            assert running.left() == []
            assert running.acted
        assert os.listdir(tmp_path) == [part_of(file).name]
        while guest.status() != "running":
            guest.wait_event("RESUME")
        ticks(guest)
        assert watched_mappings(guest) == 0


class TestQemu:
    @pytest.mark.parametrize(
        ("moment", "backend"), [("protected", "private"), ("in the pause", "memfd"), ("after cont", "private")]
    )
    def test_that_is_killed_ends_the_save(
        self, ticker: list[str], tmp_path: Path, when: When, moment: str, backend: Literal["private", "memfd"]
    ) -> None:
        mine = children(), descriptors()
        with QemuProcess(*ticker, ram=Ram(backend=backend)) as guest:
            guest.wait_serial("A")
            when(moment, lambda _: kill(guest.pid))
            refused(call(*argv(guest, tmp_path / "saved", "auto")), 4, "ended")
        assert os.listdir(tmp_path) == []
        assert (children(), descriptors()) == mine


@pytest.fixture
def own(ticker: list[str]) -> Iterator[QemuProcess]:
    """A guest that does not have to survive."""
    with QemuProcess(*ticker, "-m", "64M,slots=2,maxmem=1G") as guest:
        guest.wait_serial("C")
        yield guest


BACKGROUND_SNAPSHOT = {"capability": "background-snapshot", "state": True}


class TestAnotherMonitor:
    def test_resets_the_guest_after_the_pause(self, guest: QemuProcess, tmp_path: Path, when: When) -> None:
        when("after cont", lambda _: (guest.qmp("system_reset"), guest.wait_event("RESET")))
        saved = Saved(guest, tmp_path / "saved")
        assert saved.snapshot.faults + saved.snapshot.ahead_groups > 0
        assert saved.is_right()
        guest.wait_serial("A")

    def test_stops_the_guest_after_the_pause_and_it_stays_stopped(
        self, guest: QemuProcess, tmp_path: Path, when: When
    ) -> None:
        when("after cont", lambda _: guest.stop())
        saved = Saved(guest, tmp_path / "saved")
        assert guest.status() == "paused"
        guest.cont()
        assert saved.snapshot
        assert saved.is_right()

    def test_lets_the_guest_go_on_in_the_pause_and_it_begins_again(
        self, guest: QemuProcess, tmp_path: Path, when: When
    ) -> None:
        when("device state", lambda _: (guest.cont(), guest.wait_serial("[A-Z]{2}")))
        saved = Saved(guest, tmp_path / "saved")
        assert saved.snapshot
        assert saved.is_right()
        told = "somebody let the guest go on while it was being saved"
        assert [told in note and note.endswith("the save began again") for note in happenings(saved.report.notes)][
            -1:
        ] == [True]

    def test_does_so_every_time_and_there_is_no_file(self, guest: QemuProcess, tmp_path: Path, when: When) -> None:
        when("device state", *[lambda _: guest.cont()] * 9)
        result = call(*argv(guest, tmp_path / "saved", "auto"))
        refused(result, 4, "somebody let the guest go on while it was being saved")
        assert os.listdir(tmp_path) == []

    def test_migrates_the_guest_away_in_the_pause(self, own: QemuProcess, tmp_path: Path, when: When) -> None:
        def migrate(_: object) -> None:
            own.migrate(f"file:{tmp_path / 'theirs'}")
            while own.status() == "finish-migrate":
                pass

        when("device state", migrate)
        with unharmed(own, status="postmigrate"):
            result = call(*argv(own, tmp_path / "saved", "auto"))
            refused(
                result,
                4,
                "the guest's run state became 'postmigrate' while it was being saved, and was left as it is\n",
            )
        assert os.listdir(tmp_path) == ["theirs"]

    def test_migrates_it_away_after_the_pause(self, own: QemuProcess, tmp_path: Path, when: When) -> None:
        when("after cont", lambda _: own.migrate(f"file:{tmp_path / 'theirs'}"))
        saved = Saved(own, tmp_path / "saved")
        assert saved.snapshot
        assert saved.is_right()
        assert own.status() == "postmigrate"
        assert watched_mappings(own) == 0

    def test_wants_a_background_snapshot_while_ours_is_taken_and_is_refused(
        self, own: QemuProcess, tmp_path: Path, when: When
    ) -> None:
        def begin(_: object) -> None:
            with pytest.raises(QemuError, match="not compatible with guest memory configuration"):
                own.qmp("migrate-set-capabilities", capabilities=[BACKGROUND_SNAPSHOT])

        when("after cont", begin)
        saved = Saved(own, tmp_path / "saved")
        assert saved.snapshot
        assert saved.is_right()

    def test_has_begun_one_before_ours_is(self, own: QemuProcess, tmp_path: Path, when: When) -> None:
        """To somebody who reads nothing of it, so that it stays under way."""
        folder = tmp_path / "folder"
        folder.mkdir()

        def begin(_: object) -> None:
            own.qmp("migrate-set-capabilities", capabilities=[BACKGROUND_SNAPSHOT])
            own.qmp("migrate", uri=f"unix:{tmp_path / 'theirs'}")
            while not watched_mappings(own):
                pass

        with socket.socket(socket.AF_UNIX) as there:
            there.bind(os.fspath(tmp_path / "theirs"))
            there.listen()
            when("ready", begin)
            refused(call(*argv(own, folder / "saved", "snapshot")), 5, "somebody else watches this memory\n")
            assert watched_mappings(own), "theirs is under way still"
            refused(call(*argv(own, folder / "saved", "auto")), 4, "a migration of this guest is under way\n")
        assert os.listdir(folder) == []
        ticks(own)


class TestIsRefused:
    def test_where_it_is_traced(self, ticker: list[str], tmp_path: Path) -> None:
        wrapper = [require_tool("strace"), "-f", "-o", "/dev/null", "-e", "trace=none", "-e", "signal=none"]
        with QemuProcess(*ticker, wrapper=wrapper) as guest:
            guest.wait_serial("C")
            with unharmed(guest):
                with untouched(tmp_path):
                    refused(call(*argv(guest, tmp_path / "saved", "snapshot")), 5, "traced")
                saved = done(call(*argv(guest, tmp_path / "saved", "auto", "--json"))).json
                assert saved["choice"]["capture"] == "compare"
                assert any("traced" in why for why in saved["choice"]["why"])

    def test_where_a_signal_has_stopped_qemu_and_it_stays_so(
        self, own: QemuProcess, tmp_path: Path, when: When
    ) -> None:
        def stop(_: object) -> None:
            os.kill(own.pid, signal.SIGSTOP)
            os.waitid(os.P_PID, own.pid, os.WSTOPPED | os.WNOWAIT)

        when("ready", stop, stop)
        with unharmed(own):
            try:
                for mode in ("snapshot", "auto"):
                    result = call(*argv(own, tmp_path / "saved", mode, "--qmp-timeout", 0.3))
                    refused(result, 4, "within 0.3 s")
                    assert state(own.pid) == "T"
                    os.kill(own.pid, signal.SIGCONT)
            finally:
                os.kill(own.pid, signal.SIGCONT)
        assert os.listdir(tmp_path) == []


class TestWhatAUserfaultfdIsNotToldOf:
    """The guest would write, or be written, unseen."""

    @staticmethod
    def refused_by_name_and_compared(guest: QemuProcess, folder: Path, code: int, why: str) -> None:
        refused(call(*argv(guest, folder / "saved", "snapshot")), code, why)
        assert os.listdir(folder) == []
        saved = done(call(*argv(guest, folder / "saved", "auto", "--json"))).json
        assert saved["choice"]["capture"] == "compare"
        assert any(why in each for each in saved["choice"]["why"])

    @pytest.fixture
    def merges(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
        """Says that the host merges pages now, or does not; the real one is everybody's."""
        folder = tmp_path / "ksm"
        folder.mkdir()

        def say(now: bool) -> None:
            (folder / "run").write_text(f"{now:d}")
            (folder / "full_scans").write_text(str(int((folder / "full_scans").read_text()) + now))

        (folder / "full_scans").write_text("3")
        say(False)
        monkeypatch.setattr(ksm, "_KSM", folder)
        return say

    def test_merging(self, ticker: list[str], tmp_path: Path, merges: Callable[[bool], None], when: When) -> None:
        folder = tmp_path / "folder"
        folder.mkdir()
        with QemuProcess(*ticker, machine="q35,mem-merge=on") as guest:
            guest.wait_serial("C")
            with unharmed(guest):
                when("after cont", lambda _: (merges(True), merges(False)))
                refused(call(*argv(guest, folder / "saved", "snapshot")), 5, "(KSM)", "mem-merge=off")
                assert Saved(guest, folder / "saved").snapshot, "it merges no more"
                (folder / "saved").unlink()
                merges(True)
                self.refused_by_name_and_compared(guest, folder, 5, "(KSM)")

    def test_but_what_may_not_be_merged_is_saved(
        self, guest: QemuProcess, tmp_path: Path, merges: Callable[[bool], None]
    ) -> None:
        merges(True)
        assert Saved(guest, tmp_path / "saved").snapshot

    def test_memory_that_others_share(self, ticker: list[str], tmp_path: Path) -> None:
        shared = (
            "-object",
            "memory-backend-memfd,id=s,size=4M,share=on",
            "-device",
            "ivshmem-plain,memdev=s,master=on",
        )
        with QemuProcess(*ticker, *shared) as guest:
            guest.wait_serial("C")
            self.refused_by_name_and_compared(guest, tmp_path, 4, "is an ivshmem-plain: whoever shares its memory")

    def test_a_disk_that_writes_memory_by_itself(self, ticker: list[str], tmp_path: Path, commands: Commands) -> None:
        def otherwise(name: str, answer: Any) -> Any:
            if name == "query-named-block-nodes":
                return [each | ({"drv": "nvme"} if each["drv"] == "null-co" else {}) for each in answer]
            return answer

        commands.behind = otherwise
        disk = ("-blockdev", "driver=null-co,node-name=disk,read-zeroes=on", "-device", "virtio-blk-pci,drive=disk")
        with QemuProcess(*ticker, *disk) as guest:
            guest.wait_serial("C")
            self.refused_by_name_and_compared(guest, tmp_path, 4, "disk 'disk' is accessed by nvme")

    def test_a_balloon_on_huge_pages(self, ticker: list[str], tmp_path: Path) -> None:
        args = (*ticker, *HUGE, "-device", "virtio-balloon-pci")
        with huge_file(0, pool=32), QemuProcess(*args, ram=None) as guest:
            guest.wait_serial("C")
            refused(call(*argv(guest, tmp_path / "saved", "snapshot")), 4, "which discards parts of huge pages")


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]


class TestEveryPageIsRight:
    """Compared with a copy that is taken in the pause."""

    def saved(self, guest: QemuProcess, path: Path, **how: Any) -> Saved:
        with unharmed(guest):
            saved = Saved(guest, path, **how)
            assert saved.snapshot.faults + saved.snapshot.ahead_groups > 0
            assert saved.is_right()
        return saved

    @pytest.mark.parametrize("direct", ["on", "off"])
    def test_on_huge_pages(self, ticker: list[str], tmp_path: Path, direct: str) -> None:
        with huge_file(0, pool=32), QemuProcess(*ticker, *HUGE, ram=None) as guest:
            guest.wait_serial("C")
            self.saved(guest, tmp_path / "saved", channels=2, direct=direct)

    def test_in_a_sandbox(self, ticker: list[str], tmp_path: Path) -> None:
        sandbox = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
        with QemuProcess(*ticker, "-sandbox", sandbox) as guest:
            guest.wait_serial("C")
            self.saved(guest, tmp_path / "saved")

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can have QEMU become somebody else")
    @pytest.mark.parametrize("backend", ["private", "memfd"])
    def test_of_a_qemu_that_has_no_right_to_a_userfaultfd(
        self, ticker: list[str], tmp_path: Path, backend: Literal["private", "memfd"]
    ) -> None:
        if Path("/proc/sys/vm/unprivileged_userfaultfd").read_text() != "0\n":
            pytest.skip("every process may have a userfaultfd here")
        with QemuProcess(*ticker, "-run-with", "user=nobody", ram=Ram(backend=backend)) as guest:
            guest.wait_serial("C")
            self.saved(guest, tmp_path / "saved")

    def test_of_memory_that_is_plugged_in_after_the_pause(self, own: QemuProcess, tmp_path: Path, when: When) -> None:
        def plug(_: object) -> None:
            own.qmp("object-add", qom_type="memory-backend-ram", id="more", size=128 * MIB)
            own.qmp("device_add", driver="pc-dimm", id="dimm", memdev="more")

        when("after cont", plug)
        saved = self.saved(own, tmp_path / "saved")
        assert "more" not in read_stored(saved.path).blocks
        assert [block.name for block in own.ramblocks() if block.name == "more"]

    def test_many_times_in_a_row_of_a_guest_that_never_rests(self, qemu_binary: str, tmp_path: Path) -> None:
        """And nothing is more than before: descriptors, processes, mappings of QEMU."""
        image = tmp_path / "image"
        image.write_bytes(boot_image(end=4 * MIB, hz=0))
        with QemuProcess(*boot_from(image), ram=Ram(24 * MIB, "memfd")) as guest:
            guest.wait_serial("C")
            self.saved(guest, tmp_path / "first")
            mappings = mapping_count(guest.pid)
            with unharmed(guest):
                for number in range(299 if thorough() else 19):
                    saved = Saved(guest, tmp_path / "saved", direct=("on", "off")[number % 2])
                    assert saved.snapshot.faults + saved.snapshot.ahead_groups > 0
                    assert saved.is_right()
                    saved.path.unlink()
            assert mapping_count(guest.pid) <= mappings + FEW


def common_machine() -> str:
    """A machine type that every QEMU in PATH has: the oldest one's."""
    return "pc-q35-{}.{}".format(*next(iter(all_qemus())))


@pytest.fixture(scope="module")
def snapshot(ticker: list[str], tmp_path_factory: pytest.TempPathFactory) -> Saved:
    require_userfaultfd()  # a fixture of a module comes before those of its tests
    with QemuProcess(*ticker, machine=common_machine()) as guest:
        guest.wait_serial("C")
        saved = Saved(guest, tmp_path_factory.mktemp("saved") / "saved", channels=2)
    assert saved.snapshot.faults + saved.snapshot.ahead_groups > 0
    return saved


class TestTheFile:
    """Is one like any other: every QEMU in PATH loads it in each way, and it is cloned."""

    @pytest.mark.parametrize("way", ["plain", "multifd 2", "direct-io"])
    def test_is_loaded(self, ticker: list[str], snapshot: Saved, way: str) -> None:
        for program in all_qemus().values():
            with QemuProcess(
                *ticker, machine=common_machine(), program=program, incoming=True, paused=True
            ) as destination:
                destination.load(f"file:{snapshot.path}", *WAYS_TO_LOAD[way])
                assert differences(snapshot.held.copies[-1], contents(destination)) == {}
                destination.cont()
                assert in_turn(destination.wait_serial("[A-Z]{3}")[0])

    def test_is_cloned(self, ticker: list[str], snapshot: Saved, tmp_path: Path) -> None:
        with BootFolder(tmp_path / "boot") as boot:
            line = boot.line(*ticker, ram=Ram(), machine=common_machine(), clones=2)
            _, guests = boot.start("clone", snapshot.path, "--count", 2, line=line)
            for guest in guests:
                assert in_turn(guest.wait_serial("[A-Z]{3}")[0])
        assert snapshot.is_right(), "clones change nothing of it"


def mapping_count(pid: int) -> int:
    return len(Path(f"/proc/{pid}/maps").read_text().splitlines())
