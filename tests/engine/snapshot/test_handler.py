"""The handler, a turn at a time in this process: what it does with each fault and each answer of the kernel."""

from __future__ import annotations

import os
import random
from collections.abc import Callable

import numpy as np
import pytest
from support.pictures import PAGE
from support.served_handler import GROUP, Served, assert_void

from parallel_fixedram.engine.capture.snapshot.marks import Phase, Void
from parallel_fixedram.engine.capture.snapshot.messages import Command, Done
from parallel_fixedram.engine.capture.snapshot.ring import Ring


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


@pytest.mark.parametrize(("seconds", "lengths"), [(1e9, [1, 2, 3]), (-1.0, [1, 1, 1, 1, 1, 1])])
def test_pieces_that_are_protected_grow_as_long_as_that_is_quick(
    serve: Callable[..., Served], seconds: float, lengths: list[int]
) -> None:
    served = serve(least_protected_bytes=GROUP, most_protected_bytes=4 * GROUP, protect_seconds=seconds)
    served.protect()
    assert served.memory.lengths == lengths


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
