"""The handler: what it copies before anybody waits for it, and what it lets go along with what is waited for."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from support.served_handler import GROUP, Served

from parallel_fixedram.engine.capture.snapshot.marks import Phase
from parallel_fixedram.engine.capture.snapshot.messages import Command, Done


def test_who_writes_one_group_after_the_other_waits_less_and_less_often(serve: Callable[..., Served]) -> None:
    """What lies behind is copied along, twice as much each time, up to the end of the block; but for zeros."""
    served = serve(slots=16)
    served.fix()
    for group in (0, 1, 3):
        served.fault(group)
        served.turns()
    assert served.memory.calls == [("unprotect", 0), ("unprotect", 1), ("unprotect", 3)]
    assert served.memory.lengths == [1, 2, 3]
    assert served.spilled() == ["0A", "1B", "2C", "3D", "4E"]


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


def test_a_ring_that_fills_keeps_nobody_waiting_for_more_than_is_asked_for(serve: Callable[..., Served]) -> None:
    served = serve(slots=2)
    served.fix()
    for group in (0, 1):
        served.fault(group)
        served.turns()
    assert served.memory.lengths == [1, 1]


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


def test_before_t_nothing_behind_is_let_go_along(served: Served) -> None:
    served.protect()
    for group in (0, 1, 2):
        served.fault(group)
        served.turns()
    assert served.marks.noted.tolist() == [1, 1, 1, 0, 0, 0]


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
