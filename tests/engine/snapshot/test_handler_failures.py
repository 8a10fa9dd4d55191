"""The handler: memory that is lost, calls that fail and processes that end cost the snapshot, and never the guest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from support.pictures import PAGE
from support.served_handler import GROUP, START, Served, assert_void

from parallel_fixedram.core.errors import HostError
from parallel_fixedram.engine.capture.snapshot.marks import Phase, Void
from parallel_fixedram.engine.capture.snapshot.messages import Command, Done
from parallel_fixedram.host.memory.userfaultfd import EventWaiting, Message, Remapped, Removed, Unmapped


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


def test_a_discard_that_went_before_the_end_makes_it_void_and_one_behind_it_does_not(
    served: Served, serve: Callable[..., Served]
) -> None:
    served.fix()
    served.order(Command.END)
    served.turns()
    assert served.answer() == Done()
    served.memory.tell(Removed(START, START + PAGE))
    served.until(Phase.ENDED)
    figures = served.answer()
    assert figures.void is None

    one = serve()
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
