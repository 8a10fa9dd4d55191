"""A save whose machine somebody acts on: what is torn is taken again, what changed begins again, or nothing is left."""

import os
from dataclasses import replace
from typing import Any

import pytest
from support.examples import some_of
from support.pictures import PAGE, content, saved_picture
from support.saving import save, several
from support.sources import ScriptedGuest, WatchedSource
from support.streamwriter import DEVICES, device_bytes

from parallel_fixedram.core.errors import HostError, MachineChanged, MachineError
from parallel_fixedram.core.protocols import GuestBlock, PageSource
from parallel_fixedram.core.ramblock import PageRange
from parallel_fixedram.core.save_options import DirectIO
from parallel_fixedram.engine.pages.writer import PageWriter
from parallel_fixedram.host.files.channel import FileChannel
from parallel_fixedram.image.image import open_image
from parallel_fixedram.image.verify import verify
from parallel_fixedram.verbs.save import MOST_INSTANTS, MOST_SAVES

BEFORE = {"m": "AB0-CD0A" * 40, "rom": "Z0-Z"}
TORN = {"m": "A00-BD0C" * 40, "rom": "Y0-Z"}
AFTER = {"m": "AB--C0DA" * 40, "rom": "Y0-0"}
"""Pages that stay, change, get empty and get filled, between each two of the three."""
LETTER = "somebody let the guest go on"


class ActedOn(ScriptedGuest):
    """Has other memory at each instant; a shared mapping shows it to whoever has it open."""

    def become(self, ram: dict[str, str]) -> None:
        for (name, picture), fd in zip(ram.items(), self.fds.values(), strict=True):
            for index, letter in enumerate(picture):
                if letter != BEFORE[name][index] or letter != TORN[name][index] or letter != AFTER[name][index]:
                    os.pwrite(fd, content(letter), index * PAGE)


def guest(*, running: bool, states: list[bytes] | None = None, torn: int = 1) -> ActedOn:
    """Torn so many times, each time while the last round is read."""
    left = states or [b""]

    def state() -> bytes:
        return left.pop(0) if len(left) > 1 else left[0]

    machine = ActedOn(
        BEFORE,
        [lambda: machine.become(TORN), lambda: machine.become(AFTER)],
        running=running,
        small={"rom"},
        device_state=state,
    )
    machine.torn = [LETTER] * torn
    return machine


@pytest.mark.parametrize("running", [True, False], ids=["compared", "standing still"])
@pytest.mark.parametrize("direct", [DirectIO.ON, DirectIO.OFF])
@pytest.mark.parametrize("channels", some_of([2, 1], 2))
def test_a_torn_instant_is_taken_again_and_the_file_is_the_second(
    target: str, running: bool, direct: DirectIO, channels: int
) -> None:
    """The second device state has another length, so that all that follows the pages moves."""
    states = [device_bytes(DEVICES), device_bytes(DEVICES[:1])]
    with guest(running=running, states=states) as machine:
        report = save(machine, target, several(channels=channels, direct_io=direct))
        assert machine.calls.count("pause") == machine.calls.count("resume") == 2
        assert machine.running is running
    [again] = [each for each in report.notes if LETTER in each]
    assert again.startswith(f"{LETTER} while it was being saved: the last round was repeated")
    with open_image(target) as image:
        assert verify(image, channels=1).ok
        for name, picture in AFTER.items():
            assert image.read_pages(name, first=0, count=len(picture)) == content(picture)


@pytest.mark.parametrize("direct", [DirectIO.ON, DirectIO.OFF])
@pytest.mark.usefixtures("every_round_counts")
def test_a_torn_last_round_leaves_what_changed_since_to_the_dirty_log(target: str, direct: DirectIO) -> None:
    """Pages that change at the first instant, at the second, at both, and in a round before."""
    script = ["", "X0..E..." * 20, "Y.0.0..Z" * 20]
    with ScriptedGuest({"m": "ABCDEFG-" * 20}, script) as machine:
        machine.torn = [LETTER]
        report = save(machine, target, several(direct_io=direct, max_rounds=2), dirty=machine)
        assert machine.calls.count("pause") == 2
    assert [each.while_running for each in report.rounds] == [True, False, False]
    assert saved_picture(target, "m") == "Y--D-FGZ" * 20
    with open_image(target) as image:
        assert verify(image, channels=1).ok


def test_a_page_that_comes_and_goes_while_it_is_written_leaves_nothing_behind_a_cleared_bit(
    target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Full when it is compared, empty when it is tested for zero, full when zeros are written from it, empty again."""
    moments = ["0", "C"]
    write_window, write_runs = PageWriter.write, FileChannel.write_runs
    machine = ScriptedGuest({"m": "B" * 32}, [lambda: become("A")], running=True)
    machine.torn = [LETTER]

    def become(letter: str) -> None:
        os.pwrite(machine.fds["m"], content(letter * 32), 0)

    def before_the_test(self: PageWriter, *arguments: Any) -> Any:
        if moments == ["0", "C"]:
            become(moments.pop(0))
        return write_window(self, *arguments)

    def before_the_write(self: FileChannel, *arguments: Any) -> None:
        if moments == ["C"]:
            become(moments.pop(0))
        write_runs(self, *arguments)
        if not moments:
            become("0")

    monkeypatch.setattr(PageWriter, "write", before_the_test)
    monkeypatch.setattr(FileChannel, "write_runs", before_the_write)
    with machine:
        save(machine, target, several(channels=1, direct_io=DirectIO.OFF))
    with open_image(target) as image:
        assert verify(image, channels=1).ok
    assert saved_picture(target, "m") == "-" * 32


def test_one_that_is_torn_every_time_leaves_no_file_and_goes_on(target: str) -> None:
    with guest(running=True, torn=10) as machine:
        with pytest.raises(
            MachineError, match=f"{LETTER} while it was being saved, in each of {MOST_INSTANTS} attempts"
        ):
            save(machine, target, several(channels=1))
        assert machine.calls.count("pause") == MOST_INSTANTS
        assert machine.running
    assert os.listdir(os.path.dirname(target)) == []


def test_a_machine_that_changed_is_saved_from_the_beginning(target: str) -> None:
    with ScriptedGuest({"m": "AB0-"}) as machine:
        machine.changed = [True]
        report = save(machine, target, several(channels=1))
        assert machine.calls.count("pause") == 2
    assert [note.endswith("the save began again") for note in report.notes] == [True]
    assert saved_picture(target, "m") == "AB--"


def test_one_that_changes_every_time_leaves_no_file(target: str) -> None:
    with ScriptedGuest({"m": "AB0-"}) as machine:
        machine.changed = [True] * 10
        with pytest.raises(MachineChanged, match=f"plugged in or out .* {MOST_SAVES} times"):
            save(machine, target, several(channels=1))
        assert machine.calls.count("pause") == MOST_SAVES
    assert os.listdir(os.path.dirname(target)) == []


class OnceUnreadable(WatchedSource):
    """Cannot be read the first time that somebody asks where data may be."""

    def __init__(self, inner: PageSource) -> None:
        super().__init__(inner, [1] * 4)
        self._failures = [HostError("cannot read guest memory", errno=14)]

    def data_ranges(self, within: PageRange) -> list[PageRange]:
        if self._failures:
            raise self._failures.pop()
        return super().data_ranges(within)


class Unplugged(ScriptedGuest):
    """Its memory is gone when it is looked at first."""

    def __init__(self, *ram: dict[str, str]) -> None:
        super().__init__(*ram)
        (block,) = super().guest_blocks()
        self._only = [replace(block, source=OnceUnreadable(block.source))]

    def guest_blocks(self) -> list[GuestBlock]:
        return self._only


@pytest.mark.parametrize(("changed", "saves"), [([], 1), ([True, False], 2)])
def test_memory_that_cannot_be_read_is_an_error_unless_it_was_unplugged(
    target: str, changed: list[bool], saves: int
) -> None:
    with Unplugged({"m": "AB0-"}) as machine:
        machine.changed = list(changed)
        if saves == 1:
            with pytest.raises(HostError, match="cannot read guest memory"):
                save(machine, target, several(channels=1))
            assert os.listdir(os.path.dirname(target)) == []
        else:
            save(machine, target, several(channels=1))
            assert saved_picture(target, "m") == "AB--"
