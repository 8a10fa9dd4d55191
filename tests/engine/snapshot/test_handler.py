"""The handler, a turn at a time in this process: what it does with each message, answer and failure of the kernel."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from support.pictures import PAGE, memfd

from parallel_fixedram.core.bitmap import Bits
from parallel_fixedram.core.errors import HostError
from parallel_fixedram.core.protocols import Pages
from parallel_fixedram.core.ramblock import PageRange, RAMBlock
from parallel_fixedram.engine.capture.snapshot.copier import GroupCopier
from parallel_fixedram.engine.capture.snapshot.groups import Groups
from parallel_fixedram.engine.capture.snapshot.handler import Handler
from parallel_fixedram.engine.capture.snapshot.link import Link
from parallel_fixedram.engine.capture.snapshot.marks import Marks, Phase, Void
from parallel_fixedram.engine.capture.snapshot.messages import Command, Done, Figures, receive, send
from parallel_fixedram.engine.capture.snapshot.pieces import Pieces as PieceSizes
from parallel_fixedram.engine.capture.snapshot.places import Origin
from parallel_fixedram.engine.capture.snapshot.ring import Ring
from parallel_fixedram.engine.pages.ledger import Ledger
from parallel_fixedram.host.memory.mapped_source import MappedSource
from parallel_fixedram.host.memory.userfaultfd import EventWaiting, Message, PageFault, Remapped, Removed, Unmapped

START, GROUP = 1 << 40, 64 * PAGE


class Scripted:
    """A Userfaultfd of memory that nobody writes: its messages and refusals come from the test.

    Attributes:
        calls: what was asked of it, with the number of the first group.
        lengths: how many groups each of them was about.
        fails: called before each of them with its name.
    """

    def __init__(self) -> None:
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._messages: list[Message] = []
        self.calls: list[tuple[str, int]] = []
        self.lengths: list[int] = []
        self.fails: Callable[[str], None] = lambda name: None
        self.closed = False

    def tell(self, *messages: Message) -> None:
        self._messages += messages
        os.eventfd_write(self._fd, 1)

    def fileno(self) -> int:
        return self._fd

    def read(self) -> list[Message]:
        found, self._messages = self._messages, []
        if found:
            os.eventfd_read(self._fd)
        return found

    def __getattr__(self, name: str) -> Callable[[int, int], None]:
        if name not in ("protect", "unprotect", "unregister"):
            raise AttributeError(name)

        def call(start: int, length: int) -> None:
            self.fails(name)
            self.calls.append((name, (start - START) // GROUP))
            self.lengths.append(length // GROUP)

        return call

    def close(self) -> None:
        self.closed = True

    def end(self) -> None:
        os.close(self._fd)


class RecordingRing(Ring):
    """Knows which slots were asked to be ready."""

    def __init__(self, slots: int) -> None:
        super().__init__(slots, PAGE)
        self.made_ready: list[int] = []

    def get_ready(self, first: int, slots: int) -> None:
        super().get_ready(first, slots)
        self.made_ready.append(first)


class Source(MappedSource):
    """Guest RAM that cannot be read any more from some moment on."""

    broken = False

    def pages(self, first: int, count: int, wanted: Bits | None = None) -> Pages:
        if self.broken:
            raise HostError("cannot read memory of process 5")
        return super().pages(first, count, wanted)


class Served:
    """A handler of six groups, of which the first five hold something.

    Args:
        slots: groups for which there is room in the ring.
        max_stall: how long a write may wait for that, seconds.
        clock: tells how long it does.
        pieces: of Pieces; one group is noted at a time unless told otherwise.

    Attributes:
        memory: the guest's, scripted.
        ours: our end of its control socket.
        spill: our end of its link to a spill writer.
    """

    def __init__(
        self, *, slots: int = 8, max_stall: float = 20.0, clock: Callable[[], float] = time.monotonic, **pieces: Any
    ) -> None:
        blocks = [RAMBlock(idstr="ram", used_length=6 * GROUP)]
        self._fd = memfd("".join(letter * 64 for letter in "ABCDE-"))
        self.source = Source(self._fd, length=6 * GROUP)
        self.marks, self.ring = Marks(6, blocks), RecordingRing(slots)
        data = Ledger(blocks).data
        data[0].set_range(PageRange(0, 5 * 64))
        groups = Groups(blocks, [START])
        copier = GroupCopier(Origin(groups=groups, sources=[self.source], data=data), self.marks)
        copier.open()
        self.memory = Scripted()
        self.ours, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.spill, self._link = Link.pair()
        self.handler = Handler(
            self.memory,  # type: ignore[arg-type]
            groups,
            copier,
            self.marks,
            self.ring,
            control=self._theirs,
            link=self._link,
            max_stall=max_stall,
            pieces=PieceSizes(**{"noted_bytes": GROUP} | pieces),
            clock=clock,
        )

    def order(self, command: Command) -> None:
        send(self.ours, command)

    def turns(self, count: int = 1) -> None:
        for _ in range(count):
            self.handler.turn()

    def until(self, phase: Phase) -> None:
        while self.handler.phase != phase:
            self.handler.turn()

    def protect(self) -> None:
        self.order(Command.PROTECT)
        self.until(Phase.PROTECTED)
        assert self.answer() == Done()
        self.memory.calls.clear()

    def fix(self) -> None:
        """With nothing to sweep but the group that is zero, which is swept at once."""
        self.protect()
        self.order(Command.FIX)
        self.until(Phase.CAPTURING)
        assert self.answer() == Done()
        self.turns()
        assert self.memory.calls[-1] == ("unprotect", 5)
        self.memory.calls.clear()
        self.memory.lengths.clear()

    def fault(self, *groups: int) -> None:
        self.memory.tell(*(PageFault(START + group * GROUP + 5 * PAGE) for group in groups))

    def answer(self) -> Any:
        return receive(self.ours, wait=False)

    def spilled(self) -> list[str]:
        """The groups in the ring, each as the letter that its first and last page are full of."""
        found = []
        for place in range(len(self.ring)):
            group, pages = self.ring.peek(place)
            assert (pages[0] == pages[63]).all()
            found.append(f"{group}{chr(int(pages[0, 0]) & 255)}")
        return found

    def close(self) -> None:
        self.source.close()
        self.memory.end()
        self.ours.close()
        self._theirs.close()
        self.spill.close()
        self._link.close()
        os.close(self._fd)


@pytest.fixture
def serve() -> Iterator[Callable[..., Served]]:
    """``Served``, closed at the end."""
    with contextlib.ExitStack() as stack:
        yield lambda **how: stack.enter_context(contextlib.closing(Served(**how)))


@pytest.fixture
def served(serve: Callable[..., Served]) -> Served:
    return serve()


@pytest.fixture
def tight() -> Iterator[Served]:
    """With room for one group in the ring."""
    one = Served(slots=1)
    yield one
    one.close()


def test_what_is_written_before_t_is_noted_let_go_and_protected_again_at_t(served: Served) -> None:
    served.protect()
    served.fault(1, 4)
    served.turns()
    assert served.memory.calls == [("unprotect", 1), ("unprotect", 4)]
    assert served.marks.noted.tolist() == [0, 1, 0, 0, 1, 0]
    served.memory.calls.clear()
    served.order(Command.FIX)
    served.turns()
    assert served.memory.calls[:2] == [("protect", 1), ("protect", 4)]
    assert served.answer() == Done()


def test_who_writes_one_group_after_the_other_waits_less_and_less_often() -> None:
    """What lies behind is copied along, twice as much each time, up to the end of the block; but for zeros."""
    served = Served(slots=16)
    served.fix()
    for group in (0, 1, 3):
        served.fault(group)
        served.turns()
    assert served.memory.calls == [("unprotect", 0), ("unprotect", 1), ("unprotect", 3)]
    assert served.memory.lengths == [1, 2, 3]
    assert served.spilled() == ["0A", "1B", "2C", "3D", "4E"]
    served.close()


def test_what_was_let_go_meanwhile_is_passed_over(served: Served) -> None:
    served.fix()
    served.fault(0)
    served.turns()
    served.marks.written[1] = 1
    served.turns()
    served.fault(2)
    served.turns()
    assert served.memory.calls == [("unprotect", 0), ("unprotect", 1), ("unprotect", 2)]
    assert served.memory.lengths == [1, 1, 2]


@pytest.mark.parametrize("faults", [(3, 2, 1), (4, 0, 3)])
def test_who_writes_here_and_there_gets_what_is_waited_for_and_no_more(served: Served, faults: tuple[int, ...]) -> None:
    served.fix()
    for group in faults:
        served.fault(group)
        served.turns()
    assert served.memory.lengths == [1, 1, 1]
    assert len(served.ring) == 3


def test_a_ring_that_fills_keeps_nobody_waiting_for_more_than_is_asked_for() -> None:
    served = Served(slots=2)
    served.fix()
    for group in (0, 1):
        served.fault(group)
        served.turns()
    assert served.memory.lengths == [1, 1]
    served.close()


def test_no_more_is_copied_along_than_half_the_ring_has_room_for(served: Served) -> None:
    """Of its eight slots one is taken, and then three."""
    served.fix()
    for group in (0, 1, 3):
        served.fault(group)
        served.turns()
    assert served.memory.lengths == [1, 2, 2]


def test_before_t_what_lies_around_is_let_go_along_because_that_costs_no_copy(
    serve: Callable[..., Served],
) -> None:
    """Once, however many wait in the same two megabytes."""
    served = serve(noted_bytes=4 * GROUP)
    served.protect()
    served.fault(1, 2)
    served.turns()
    assert (served.memory.calls, served.memory.lengths[-1:]) == ([("unprotect", 0)], [4])
    assert served.marks.noted.tolist() == [1, 1, 1, 1, 0, 0]
    assert served.ring.taken == len(served.ring) == 0


@pytest.mark.parametrize(("seconds", "lengths"), [(1e9, [1, 2, 3]), (-1.0, [1, 1, 1, 1, 1, 1])])
def test_pieces_that_are_protected_grow_as_long_as_that_is_quick(
    serve: Callable[..., Served], seconds: float, lengths: list[int]
) -> None:
    served = serve(least_protected_bytes=GROUP, most_protected_bytes=4 * GROUP, protect_seconds=seconds)
    served.protect()
    assert served.memory.lengths == lengths


def test_before_t_nothing_behind_is_let_go_along(served: Served) -> None:
    served.protect()
    for group in (0, 1, 2):
        served.fault(group)
        served.turns()
    assert served.marks.noted.tolist() == [1, 1, 1, 0, 0, 0]


def test_memory_of_the_ring_that_came_free_is_used_again() -> None:
    ring = Ring(8, PAGE)
    for group in (5, 6):
        ring.room()[:] = group
        ring.put(group)
    first = ring.peek(0)[1]
    ring.take(1)
    again = ring.room()
    assert np.shares_memory(first, again)
    again[:] = 7
    ring.put(7)
    assert [(group, int(pages[0, 0])) for group, pages in map(ring.peek, range(2))] == [(6, 6), (7, 7)]


def test_a_ring_goes_round_with_what_was_put_into_it() -> None:
    """Put and taken at random, against a queue."""
    ring, queue, chance = Ring(4, PAGE), list[int](), random.Random(5)
    for number in range(400):
        if not ring.is_full() and chance.random() < 0.55:
            ring.room()[:] = number
            ring.put(number)
            queue.append(number)
        elif queue:
            count = chance.randint(1, len(queue))
            ring.take(count)
            del queue[:count]
        found = [(group, int(pages[63, 0])) for group, pages in map(ring.peek, range(len(ring)))]
        assert found == [(each, each) for each in queue]
    assert ring.taken > 100


def test_faults_are_served_between_the_pieces_that_are_protected(serve: Callable[..., Served]) -> None:
    served = serve(least_protected_bytes=2 * GROUP, most_protected_bytes=2 * GROUP)
    served.order(Command.PROTECT)
    served.turns()
    served.fault(0)
    served.turns()
    assert served.memory.calls == [("protect", 0), ("unprotect", 0), ("protect", 2)]


def test_what_is_written_after_t_is_copied_first(served: Served) -> None:
    served.fix()
    served.fault(2, 0, 2)
    served.turns()
    assert served.spilled() == ["2C", "0A"]
    assert served.memory.calls == [("unprotect", 2), ("unprotect", 0)]
    assert served.marks.copied.tolist() == [1, 0, 1, 0, 0, 0]


def test_what_is_in_the_file_or_held_nothing_is_let_go_without_a_copy(served: Served) -> None:
    served.fix()
    served.marks.written[3] = 1
    served.fault(3, 5)
    served.turns()
    assert served.spilled() == []
    assert served.memory.calls[:2] == [("unprotect", 3), ("unprotect", 5)]


def test_a_group_that_was_touched_between_data_map_and_t_is_copied_whole(served: Served) -> None:
    os.pwrite(served._fd, b"Z" * GROUP, 5 * GROUP)
    served.protect()
    served.fault(5)
    served.turns()
    served.order(Command.FIX)
    served.turns()
    served.fault(5)
    served.turns()
    assert served.spilled() == ["5Z"]


def noted(served: Served, *groups: int) -> None:
    """These are written between protection and T, which has just come."""
    served.protect()
    served.fault(*groups)
    served.turns()
    served.memory.calls.clear()
    served.order(Command.FIX)
    served.turns()
    assert served.answer() == Done()


def test_what_was_written_just_before_t_is_copied_before_anybody_waits(served: Served) -> None:
    noted(served, 1, 2, 4)
    served.turns()
    assert served.spilled() == ["1B", "2C", "4E"]
    assert served.memory.calls == [(call, group) for call in ("protect", "unprotect") for group in (1, 4)]
    served.order(Command.END)
    served.until(Phase.ENDED)
    assert served.answer() == Done()
    figures = served.answer()
    assert (figures.ahead_groups, figures.copied_groups, figures.faults) == (3, 0, 0)


def test_who_waits_comes_before_what_is_copied_ahead(serve: Callable[..., Served]) -> None:
    served = serve(ahead_bytes=GROUP)
    noted(served, 0, 1, 2)
    served.fault(4)
    served.turns()
    assert served.spilled() == ["0A", "4E", "1B"]


def test_what_was_written_just_before_t_and_is_safe_already_is_not_copied(served: Served) -> None:
    noted(served, 0, 2, 4)
    served.marks.written[2] = 1
    served.fault(0)
    served.turns(4)
    assert served.spilled() == ["0A", "4E"]
    assert {("unprotect", 0), ("unprotect", 2), ("unprotect", 4)} <= set(served.memory.calls)


def test_no_more_is_copied_ahead_than_half_the_ring_has_room_for(serve: Callable[..., Served]) -> None:
    served = serve(slots=4, ahead_bytes=GROUP)
    noted(served, 0, 1, 2, 3)
    served.turns(8)
    assert served.spilled() == ["0A", "1B"]
    served.fault(3)
    served.turns()
    assert served.spilled() == ["0A", "1B", "3D"]
    served.ring.take(2)
    served.turns(8)
    assert served.spilled() == ["3D", "2C"]


def test_there_is_memory_in_the_ring_for_what_is_noted_but_for_no_more_than_half_of_it(
    serve: Callable[..., Served],
) -> None:
    served = serve(slots=4, slots_ready=1)
    served.protect()
    served.turns(2)
    assert served.ring.made_ready == []
    served.fault(5)
    served.turns(4)
    assert served.ring.made_ready == [0]
    served.fault(1, 2, 3)
    served.turns(6)
    assert served.ring.made_ready == [0, 1]


def test_while_nobody_waits_what_is_captured_is_let_go(served: Served) -> None:
    served.fix()
    served.marks.written[1:4] = 1
    served.turns(2)
    assert served.memory.calls == [("unprotect", 1)]
    served.turns(2)
    assert served.memory.calls == [("unprotect", 1)], "once"


def test_who_finds_the_ring_full_waits_until_there_is_room(tight: Served) -> None:
    tight.fix()
    tight.fault(0, 1)
    tight.turns(2)
    assert tight.memory.calls == [("unprotect", 0)]
    assert not tight.marks.copied[1]
    tight.ring.take(1)
    tight.spill.tell()
    tight.turns()
    assert tight.memory.calls == [("unprotect", 0), ("unprotect", 1)]
    assert tight.spilled() == ["1B"]


def test_who_waits_for_room_does_not_keep_others_from_what_needs_none(tight: Served) -> None:
    tight.fix()
    tight.marks.written[2] = 1
    tight.fault(0, 1, 2)
    tight.turns()
    assert tight.memory.calls == [("unprotect", 0), ("unprotect", 2)]


def test_a_worker_that_is_quicker_than_the_spill_writer_makes_room_unnecessary(tight: Served) -> None:
    tight.fix()
    tight.fault(0, 1)
    tight.turns()
    tight.marks.written[1] = 1
    tight.turns()
    assert ("unprotect", 1) in tight.memory.calls
    assert not tight.marks.copied[1]


def test_who_waits_for_room_for_too_long_goes_on_and_the_snapshot_is_void(serve: Callable[..., Served]) -> None:
    now = [100.0]
    one = serve(slots=1, max_stall=1.0, clock=lambda: now[0])
    one.fix()
    one.fault(0, 1)
    one.turns()
    now[0] += 0.9
    one.turns()
    assert one.handler.phase == Phase.CAPTURING
    now[0] += 0.2
    one.turns(2)
    assert ("unprotect", 1) in one.memory.calls
    assert not one.marks.copied[1]
    assert_void(one, Void.RING_FULL)


def assert_void(one: Served, why: Void) -> Figures:
    """It lets all memory go, and says why."""
    assert one.marks.void[0] == why
    one.until(Phase.ENDED)
    assert one.memory.calls[-1] == ("unregister", 0)
    assert one.memory.closed
    figures = one.answer()
    assert isinstance(figures, Figures)
    assert figures.void
    return figures


def test_memory_that_is_discarded_before_t_is_noted(served: Served) -> None:
    served.protect()
    served.memory.tell(Removed(START + GROUP - PAGE, START + GROUP + PAGE))
    served.turns()
    assert served.marks.noted.tolist() == [1, 1, 0, 0, 0, 0]
    assert served.marks.void[0] == Void.NOT


@pytest.mark.parametrize(
    ("message", "why"),
    [
        (Removed(START + 3 * GROUP, START + 3 * GROUP + PAGE), Void.DISCARDED),
        (Unmapped(START, START + PAGE), Void.UNMAPPED),
        (Remapped(START, 1 << 30, PAGE), Void.REMAPPED),
    ],
)
def test_memory_that_is_lost_after_t_makes_it_void(served: Served, message: Message, why: Void) -> None:
    served.fix()
    served.memory.tell(message)
    served.turns()
    assert_void(served, why)


@pytest.mark.parametrize("message", [Unmapped(START, START + PAGE), Remapped(START, 1 << 30, PAGE)])
def test_memory_that_is_gone_before_t_makes_it_void_too(served: Served, message: Message) -> None:
    served.protect()
    served.memory.tell(message)
    served.turns()
    served.until(Phase.ENDED)
    assert served.marks.void[0]


def test_what_becomes_of_other_memory_is_no_matter(served: Served) -> None:
    served.fix()
    served.memory.tell(Removed(START - GROUP, START), Unmapped(START + 6 * GROUP, START + 7 * GROUP))
    served.turns()
    assert served.handler.phase == Phase.CAPTURING


def test_a_discard_that_went_before_the_end_makes_it_void_and_one_behind_it_does_not(served: Served) -> None:
    served.fix()
    served.order(Command.END)
    served.turns()
    assert served.answer() == Done()
    served.memory.tell(Removed(START, START + PAGE))
    served.until(Phase.ENDED)
    figures = served.answer()
    assert figures.void is None

    one = Served()
    one.fix()
    real = one.memory.read

    def late() -> list[Message]:
        """It comes while the end is heard."""
        one.memory.read = real  # type: ignore[method-assign]
        return [Removed(START, START + PAGE)]

    one.memory.read = late  # type: ignore[method-assign]
    one.order(Command.END)
    one.turns()
    assert_void(one, Void.DISCARDED)
    one.close()


def test_while_an_event_is_on_its_way_it_reads_and_tries_again(served: Served) -> None:
    """As the kernel has it: EAGAIN until the event was read, and until who waited for that went on."""
    served.protect()
    refusals = [2]

    def refuse(name: str) -> None:
        if name == "unprotect" and refusals[0]:
            if refusals[0] == 2:
                served.memory.tell(Removed(START + 4 * GROUP, START + 5 * GROUP))
            refusals[0] -= 1
            raise EventWaiting("again")

    served.memory.fails = refuse
    served.fault(1)
    served.turns()
    assert served.memory.calls == [("unprotect", 1)]
    served.turns()
    assert served.marks.noted.tolist() == [0, 1, 0, 0, 1, 0]


def test_a_fault_that_is_read_while_an_event_is_on_its_way_is_not_forgotten(served: Served) -> None:
    served.fix()
    refusals = [1]

    def refuse(name: str) -> None:
        if refusals[0]:
            refusals[0] -= 1
            served.fault(4)
            raise EventWaiting("again")

    served.memory.fails = refuse
    served.fault(1)
    served.turns(2)
    assert served.memory.calls == [("unprotect", 1), ("unprotect", 4)]
    assert served.spilled() == ["1B", "4E"]


@pytest.mark.parametrize("name", ["protect", "unprotect", "unregister"])
@pytest.mark.parametrize("phase", [Phase.PROTECTING, Phase.PROTECTED, Phase.CAPTURING, Phase.RELEASING])
def test_a_call_that_fails_costs_the_snapshot_and_lets_memory_go(served: Served, name: str, phase: Phase) -> None:
    def refuse(called: str) -> None:
        if called == "protect" and served.handler.phase == Phase.PROTECTING:
            served.fault(1)
        if called == name and served.handler.phase == phase:
            served.memory.fails = lambda _: None
            raise HostError("refused")

    served.memory.fails = refuse
    figures: Any = None
    for command in (Command.PROTECT, Command.FIX, Command.END):
        served.order(command)
        while (figures := figures or served.answer()) is None:
            served.turns()
        if figures == Done():
            figures = None
    if figures is None:
        served.until(Phase.ENDED)
        figures = served.answer()
    assert served.memory.closed
    reached = (name, phase) in {
        ("protect", Phase.PROTECTING),
        ("unprotect", Phase.PROTECTING),
        ("protect", Phase.PROTECTED),
        ("unprotect", Phase.CAPTURING),
    }
    assert figures.void == ("refused" if reached else None)


def test_a_group_that_cannot_be_read_costs_the_snapshot_and_who_waited_for_it_goes_on(served: Served) -> None:
    served.fix()
    served.source.broken = True
    served.fault(1)
    served.handler.run()
    assert served.memory.calls[0] == ("unprotect", 1)
    assert not served.marks.copied[1]
    assert served.answer().void == "cannot read memory of process 5"


def test_the_end_of_the_spill_writer_makes_it_void(served: Served) -> None:
    served.fix()
    served.spill.close()
    served.turns()
    assert_void(served, Void.SPILL_ENDED)


def test_the_end_of_the_coordinator_ends_it(served: Served) -> None:
    served.fix()
    served.ours.close()
    with pytest.raises(EOFError):
        served.handler.run()


@pytest.mark.parametrize("phase", [Phase.WAITING, Phase.PROTECTED, Phase.CAPTURING])
def test_it_can_be_given_up_at_any_time(served: Served, phase: Phase) -> None:
    {Phase.WAITING: lambda: None, Phase.PROTECTED: served.protect, Phase.CAPTURING: served.fix}[phase]()
    served.order(Command.ABANDON)
    served.turns()
    assert_void(served, Void.ABANDONED)


def test_it_says_what_it_did(tight: Served) -> None:
    tight.protect()
    tight.fault(3)
    tight.turns()
    tight.order(Command.FIX)
    tight.turns()
    tight.marks.written[2] = 1
    tight.fault(0, 1, 2)
    tight.turns()
    tight.ring.take(1)
    tight.turns()
    assert tight.answer() == Done()
    tight.order(Command.END)
    tight.until(Phase.ENDED)
    assert tight.answer() == Done()
    figures = tight.answer()
    assert (figures.faults, figures.copied_groups, figures.let_through) == (3, 2, 1)
    assert (figures.noted_groups, figures.ring_waits, figures.void) == (1, 1, None)
    assert 0 <= figures.fault_seconds.median <= figures.fault_seconds.p99 <= figures.fault_seconds.max


def test_it_beats_at_every_turn(served: Served) -> None:
    before = int(served.marks.beat[0])
    served.handler._busy = True
    served.turns()
    assert int(served.marks.beat[0]) > before
    assert np.count_nonzero(served.marks.beat) == 1
