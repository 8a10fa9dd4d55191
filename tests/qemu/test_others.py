"""What others do to a guest, or to its QEMU, while it is saved: the file is the guest at one instant, or there is none.

Every act comes just before the command sends some QMP command, and QEMU has carried it out by then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from support.cli import call, done, refused
from support.command import happenings
from support.examples import unless_thorough
from support.qemu import QemuProcess, Ram
from support.qemu_commands import Commands
from support.qemu_reader import read_stored
from support.qemu_saved import assert_one_instant, contents, differences, save
from support.watched import require_userfaultfd

import parallel_fixedram

MIB = 1 << 20
STATE = "xen-save-devices-state"
AT_THE_END = "query-status"
DIMM = 128 * MIB

Act = Callable[[], object]
Meanwhile = Callable[..., list[str]]


@pytest.fixture(autouse=True)
def no_stop_is_long(long_stop: Callable[[float], None]) -> None:
    """However busy this machine is: notes are of what others did."""
    long_stop(1e9)


@pytest.fixture
def meanwhile(commands: Commands) -> Meanwhile:
    """``meanwhile(before, act, act, ...)``: one act each time the command has stopped the guest and sends ``before``.

    Returns the commands that it sends from then on; ``before`` may be the empty string, for the next one of any name.
    """

    def plan(before: str, *acts: Act, stopped: bool = True) -> list[str]:
        left, due = list(acts), not stopped

        def look(command: str, _: object) -> None:
            nonlocal due
            if due and left and command.startswith(before):
                due = not stopped
                left.pop(0)()
            due = due or command == "stop"

        commands.before, commands.sent = look, list[str]()
        return commands.sent

    return plan


@pytest.fixture
def guest(ticker: list[str]) -> Iterator[QemuProcess]:
    """The boot-sector guest: its pages tell whether they were read at one instant."""
    with QemuProcess(*ticker, "-no-shutdown", "-device", "pvpanic,ioport=1285", ram=Ram(), machine="pc") as guest:
        guest.wait_serial("C")
        yield guest


def save_argv(guest: QemuProcess, path: Path, *more: str) -> list[str]:
    return ["save", str(path), "--qmp", str(guest.monitor_path), *more]


def assert_it_goes_on(guest: QemuProcess) -> None:
    guest.take_serial()
    guest.wait_serial("[A-Z]{2}")


def assert_nothing_left(folder: Path) -> None:
    assert list(folder.iterdir()) == []


AGAIN = {
    "compare": (3, "the last round was repeated, after a stop of "),
    "snapshot": (1, "the save began again"),
}
"""Rounds, and what the note says, by capture."""


class TestTheGuestIsLetGoOn:
    @pytest.fixture(autouse=True)
    def can_be_captured(self, request: pytest.FixtureRequest) -> None:
        if getattr(request.node, "callspec", None) and request.node.callspec.params.get("capture") == "snapshot":
            require_userfaultfd()

    @pytest.mark.parametrize(
        ("capture", "before", "backend"),
        unless_thorough(
            [
                *(("compare", STATE, "private"), ("compare", AT_THE_END, "memfd")),
                *(("snapshot", STATE, "memfd"), ("snapshot", AT_THE_END, "private")),
            ],
            product(AGAIN, (STATE, AT_THE_END), ("private", "memfd")),
        ),
    )
    def test_once_and_it_is_taken_again(
        self,
        ticker: list[str],
        tmp_path: Path,
        meanwhile: Meanwhile,
        capture: str,
        before: str,
        backend: Any,
    ) -> None:
        rounds, again = AGAIN[capture]
        with QemuProcess(*ticker, ram=Ram(backend=backend)) as guest:
            guest.wait_serial("C")
            sent = meanwhile(before, lambda: (guest.cont(), guest.wait_serial("[A-Z]{2}")))
            saved = save(guest, tmp_path / "saved", "--capture", capture)
            assert sent.count("stop") == 2
            assert len(saved["rounds"]) == rounds
            note = f"somebody let the guest go on while it was being saved: {again}"
            assert [text.startswith(note) for text in happenings(saved["notes"])] == [True]
            assert_one_instant(read_stored(tmp_path / "saved").blocks["m"].contents())
            assert parallel_fixedram.verify(str(tmp_path / "saved")).ok
            assert_it_goes_on(guest)

    @pytest.mark.parametrize(
        ("capture", "tries", "how_often"), [("compare", 4, "in each of 4 attempts"), ("snapshot", 3, "3 times")]
    )
    def test_every_time_and_there_is_no_file(
        self, guest: QemuProcess, tmp_path: Path, meanwhile: Meanwhile, capture: str, tries: int, how_often: str
    ) -> None:
        sent = meanwhile(STATE, *[guest.cont] * 10)
        result = call(*save_argv(guest, tmp_path / "saved", "--capture", capture))
        refused(result, 4, f"somebody let the guest go on while it was being saved, {how_often}\n")
        assert sent.count("stop") == tries
        assert "cont" not in sent
        assert_nothing_left(tmp_path)
        assert_it_goes_on(guest)

    def test_and_stopped_again_it_is_saved_as_it_stands_and_stays_stopped(
        self, guest: QemuProcess, tmp_path: Path, meanwhile: Meanwhile
    ) -> None:
        """It is somebody else's stop: they may not expect that it goes on."""
        sent = meanwhile(STATE, lambda: (guest.cont(), guest.wait_serial("[A-Z]{2}"), guest.stop()))
        saved = done(call(*save_argv(guest, tmp_path / "saved"), "--json")).json
        assert "cont" not in sent
        assert saved["seconds"]["pause"] == 0
        assert guest.status() == "paused"
        stored = read_stored(tmp_path / "saved").blocks
        assert differences(contents(guest), {name: block.contents() for name, block in stored.items()}) == {}

    def test_although_it_stood_still_before_it_is_saved_at_one_instant_and_left_running(
        self, guest: QemuProcess, tmp_path: Path, meanwhile: Meanwhile
    ) -> None:
        guest.stop()
        meanwhile(AT_THE_END, lambda: (guest.cont(), guest.wait_serial("[A-Z]{2}")))
        saved = done(call(*save_argv(guest, tmp_path / "saved"), "--json")).json
        assert saved["seconds"]["pause"] > 0
        assert_one_instant(read_stored(tmp_path / "saved").blocks["m"].contents())
        assert parallel_fixedram.verify(str(tmp_path / "saved")).ok
        assert_it_goes_on(guest)


class TestTheGuestComesToItsEnd:
    def test_by_a_reset_and_what_is_saved_is_one_that_boots(
        self, guest: QemuProcess, tmp_path: Path, meanwhile: Meanwhile
    ) -> None:
        sent = meanwhile(STATE, lambda: (guest.qmp("system_reset"), guest.wait_event("RESET")))
        saved = save(guest, tmp_path / "saved")
        assert sent.count("stop") == sent.count("cont") == 2
        assert [note.split(" while")[0] for note in happenings(saved["notes"])] == ["somebody reset the guest"]
        guest.wait_serial("A")
        assert_it_goes_on(guest)

    @pytest.mark.parametrize("name", ["SHUTDOWN", "GUEST_PANICKED", "WATCHDOG"])
    def test_and_is_left_as_it_is_without_a_file(
        self, guest: QemuProcess, tmp_path: Path, meanwhile: Meanwhile, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        """A request that the guest made just before it stood still: QEMU tells of it when it does already."""
        what = {
            "SHUTDOWN": "the guest was shut down (guest-shutdown)",
            "GUEST_PANICKED": "the guest panicked",
            "WATCHDOG": "the guest's watchdog expired",
        }
        from parallel_fixedram.machines.qemu import monitor

        take = monitor.Events.take
        data = {"action": "pause", "reason": "guest-shutdown"}
        held: list[bool] = []

        def told(self: monitor.Events) -> Any:
            events, complete = take(self)
            return [*events, *([{"event": name, "data": data}] if held else [])], complete

        monkeypatch.setattr(monitor.Events, "take", told)
        sent = meanwhile(STATE, lambda: held.append(True))
        result = call(*save_argv(guest, tmp_path / "saved"))
        refused(result, 4, f"{what[name]} while it was being saved, and was left as it is\n")
        assert "cont" not in sent
        assert guest.status() == "paused"
        assert_nothing_left(tmp_path)

    def test_by_a_migration_that_takes_it_away(self, guest: QemuProcess, tmp_path: Path, meanwhile: Meanwhile) -> None:
        """It runs elsewhere then, and must not go on here."""
        elsewhere, saved = tmp_path / "elsewhere", tmp_path / "saved"
        elsewhere.mkdir()

        def migrate() -> None:
            guest.migrate(f"file:{elsewhere / 'file'}")
            while guest.status() == "finish-migrate":
                pass

        sent = meanwhile(STATE, migrate)
        result = call(*save_argv(guest, saved))
        refused(
            result, 4, "the guest's run state became 'postmigrate' while it was being saved, and was left as it is\n"
        )
        assert "cont" not in sent
        assert guest.status() == "postmigrate"
        assert not saved.exists()


class TestSomethingIsPluggedInOrOut:
    def test_memory_is_saved_too_and_loads(self, ticker: list[str], tmp_path: Path, meanwhile: Meanwhile) -> None:
        plugged = ["-m", "size=64M,slots=2,maxmem=1G"]
        dimm = {"qom-type": "memory-backend-ram", "id": "more", "size": DIMM}
        with QemuProcess(*ticker, *plugged, machine="pc", ram=Ram()) as guest:
            guest.wait_serial("C")

            def plug() -> None:
                guest.qmp_raw("object-add", dimm)
                guest.qmp("device_add", driver="pc-dimm", id="dimm", memdev="more")
                block = next(block for block in guest.ramblocks() if block.name == "more")
                with open(f"/proc/{guest.pid}/mem", "r+b") as memory:
                    memory.seek(block.hva)
                    memory.write(b"x" * MIB)

            meanwhile("stop", plug, stopped=False)
            saved = save(guest, tmp_path / "saved")
            assert happenings(saved["notes"]) == [
                "memory or devices were plugged in or out while the machine was being saved: the save began again"
            ]
            stored = read_stored(tmp_path / "saved").blocks
            assert stored["more"].contents() == b"x" * MIB + bytes(DIMM - MIB)
            assert_one_instant(stored["m"].contents())
            assert_it_goes_on(guest)
        more = ["-object", f"memory-backend-ram,id=more,size={DIMM}", "-device", "pc-dimm,id=dimm,memdev=more"]
        with QemuProcess(*ticker, *plugged, *more, machine="pc", ram=Ram(), incoming=True) as destination:
            destination.load(f"file:{tmp_path / 'saved'}")
            assert destination.read_block("more") == stored["more"].contents()

    @pytest.mark.parametrize("before", ["stop", STATE, AT_THE_END])
    def test_a_device_is_saved_too(self, guest: QemuProcess, tmp_path: Path, meanwhile: Meanwhile, before: str) -> None:
        """Its ROM is a RAMBlock, without which no QEMU that has the device would take the file."""
        meanwhile(before, lambda: guest.qmp("device_add", driver="e1000e", id="nic"), stopped=before != "stop")
        saved = save(guest, tmp_path / "saved")
        assert len(happenings(saved["notes"])) == 1
        assert any(block["idstr"].endswith("/e1000e.rom") for block in saved["blocks"])
        assert "e1000e" in (tmp_path / "saved").read_bytes()[-(1 << 20) :].decode("latin-1")

    def test_a_device_without_memory_of_its_own(self, guest: QemuProcess, tmp_path: Path, meanwhile: Meanwhile) -> None:
        meanwhile(AT_THE_END, lambda: guest.qmp("device_add", driver="virtio-rng-pci", id="rng"))
        assert len(happenings(save(guest, tmp_path / "saved")["notes"])) == 1
        assert b"virtio-rng" in (tmp_path / "saved").read_bytes()

    def test_at_every_try_and_there_is_no_file(self, guest: QemuProcess, tmp_path: Path, meanwhile: Meanwhile) -> None:
        plug = [
            lambda number=number: guest.qmp("device_add", driver="virtio-rng-pci", id=f"rng{number}")
            for number in range(5)
        ]
        meanwhile(AT_THE_END, *plug)
        result = call(*save_argv(guest, tmp_path / "saved"))
        refused(result, 4, "memory or devices were plugged in or out while the machine was being saved, 3 times\n")
        assert_nothing_left(tmp_path)
        assert_it_goes_on(guest)

    @pytest.mark.parametrize("before", ["stop", STATE, AT_THE_END])
    def test_memory_that_is_unplugged_under_the_readers_never_becomes_zeros(
        self, guest: QemuProcess, tmp_path: Path, meanwhile: Meanwhile, before: str
    ) -> None:
        """A device that the guest has not let go of goes with the next reset, and its memory with it."""
        guest.qmp("device_add", driver="e1000e", id="nic")

        def unplug() -> None:
            guest.qmp("device_del", id="nic")
            guest.qmp("system_reset")
            guest.wait_event("DEVICE_DELETED")

        meanwhile(before, unplug, stopped=before != "stop")
        blocks = {block["idstr"] for block in save(guest, tmp_path / "saved")["blocks"]}
        assert blocks == {block.name for block in guest.ramblocks()}
        assert not any("e1000e" in name for name in blocks)
        assert parallel_fixedram.verify(str(tmp_path / "saved")).ok

    @pytest.mark.parametrize("before", ["stop", "query-migrate"])
    def test_a_device_that_cannot_be_migrated_does_not_end_the_guest(
        self, guest: QemuProcess, tmp_path: Path, meanwhile: Meanwhile, before: str
    ) -> None:
        """A QEMU that is asked for the state of such a device ends itself. No QEMU migrates a rocker switch."""
        meanwhile(
            before,
            lambda: guest.qmp("device_add", driver="rocker", id="switch", name="switch"),
            stopped=before != "stop",
        )
        result = call(*save_argv(guest, tmp_path / "saved"))
        refused(result, 4, "QEMU says that this guest cannot be migrated: ")
        assert not (tmp_path / "saved").exists()
        assert_it_goes_on(guest)

    def test_a_device_that_cannot_be_saved_is_refused_by_name(
        self, guest: QemuProcess, tmp_path: Path, meanwhile: Meanwhile
    ) -> None:
        def plug() -> None:
            guest.qmp_raw("object-add", {"qom-type": "memory-backend-ram", "id": "more", "size": 128 * MIB})
            guest.qmp("device_add", driver="virtio-mem-pci", id="mem", memdev="more")

        with QemuProcess("-m", "size=64M,slots=2,maxmem=1G", machine="pc", ram=Ram()) as guest:
            meanwhile("stop", plug, stopped=False)
            result = call(*save_argv(guest, tmp_path / "saved"))
            refused(result, 4, "virtio-mem")
            assert_nothing_left(tmp_path)
            assert guest.status() == "running"


def test_what_happens_to_others_tears_nothing(guest: QemuProcess, tmp_path: Path, meanwhile: Meanwhile) -> None:
    sent = meanwhile(STATE, lambda: (guest.qmp("system_powerdown"), guest.wait_event("POWERDOWN")))
    assert happenings(save(guest, tmp_path / "saved")["notes"]) == []
    assert sent.count("stop") == 1
    assert_one_instant(read_stored(tmp_path / "saved").blocks["m"].contents())
