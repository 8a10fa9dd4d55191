"""Handler and workers take turns at a group in every order there is: the file always has what the group held at T."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice

import numpy as np
import pytest

from parallel_fixedram.core.bitmap import Bits
from parallel_fixedram.core.protocols import Pages
from parallel_fixedram.core.ramblock import RAMBlock
from parallel_fixedram.engine.capture.snapshot.marks import Marks
from parallel_fixedram.engine.capture.snapshot.protocol import Step, capture, let_write
from parallel_fixedram.engine.capture.snapshot.ring import Ring

AT_T, LATER = 7, 8
MARKS = Marks(1, [RAMBlock(idstr="ram", used_length=64 * 4096)])
RING = Ring(1, 4096)
"""Of every World in its turn: to make them anew takes longer than to try an order."""

Actor = Callable[["World"], Iterator[object]]


class World:
    """One group in RAM, its place in the file, and what the processes share."""

    def __init__(self) -> None:
        self.marks, self.ring = MARKS, RING
        MARKS.copied[0] = MARKS.written[0] = 0
        RING.take(len(RING))
        self.ram, self.file, self.copy = AT_T, 0, 0
        self.protected = True
        self.published = False

    def is_needed(self, group: int) -> bool:
        return not self.marks.is_captured(group)

    def spare(self, _group: int, slot: Pages) -> None:
        slot[0, 0] = self.ram

    def unprotect(self) -> None:
        self.protected = False

    def read(self) -> None:
        self.copy = self.ram

    def write(self, mine: Bits) -> None:
        if mine[0]:
            self.file = self.copy

    def publish(self, mine: Bits) -> None:
        self.published |= bool(mine[0])


def guest(world: World) -> Iterator[object]:
    """Writes some time after it may. An actor that waits yields for what."""
    yield lambda: not world.protected
    world.ram = LATER


def spill_writer(world: World) -> Iterator[object]:
    yield lambda: len(world.ring) > 0
    world.file = int(world.ring.peek(0)[1][0, 0])
    yield
    world.published = True
    world.ring.take(1)


def serve(world: World) -> Iterator[Step]:
    return let_write(
        world.marks,
        world.ring,
        [0],
        is_needed=world.is_needed,
        copy=world.spare,
        unprotect=world.unprotect,
    )


def handler(world: World) -> Iterator[object]:
    yield from first_of(serve(world), 2)


def worker(world: World) -> Iterator[object]:
    steps = capture(world.marks, slice(0, 1), copy=world.read, write=world.write, publish=world.publish)
    yield from first_of(steps, 3)


def first_of(steps: Iterator[object], count: int) -> Iterator[object]:
    """So many, then the rest as the last one: behind it nothing is done."""
    yield from islice(steps, count)
    list(steps)


def lost_worker(steps: int) -> Actor:
    """A worker that dies after so many steps, and another one that does its shard again."""

    def run(world: World) -> Iterator[object]:
        yield from islice(worker(world), steps)
        yield from worker(world)

    return run


def in_every_order(*actors: Actor) -> int:
    """Run the actors in every order of their steps; returns how many there are.

    Raises:
        AssertionError: in one of them the file has not what the group held at T.
    """
    done = 0
    choices: list[int] = []
    while True:
        options = run_one(choices, *actors)
        done += 1
        choices += [0] * (len(options) - len(choices))
        while choices and choices[-1] == options[len(choices) - 1] - 1:
            choices.pop()
        if not choices:
            return done
        choices[-1] += 1


def run_one(choices: list[int], *actors: Actor) -> list[int]:
    """One order: of those that can go on the one of that number, then always the first; how many could each time."""
    world = World()
    running = {number: actor(world) for number, actor in enumerate(actors)}
    waits = {
        number: next(actor) if actors[number] in (guest, spill_writer) else None for number, actor in running.items()
    }
    options: list[int] = []
    while ready := [number for number in running if not callable(waits[number]) or waits[number]()]:
        number = ready[choices[len(options)] if len(options) < len(choices) else 0]
        options.append(len(ready))
        try:
            waits[number] = next(running[number])
        except StopIteration:
            del running[number]
    assert world.file == AT_T
    assert world.published
    assert not len(world.ring)
    assert world.ram == (LATER if guest in actors else AT_T)
    return options


def test_in_every_order_of_a_fault_a_window_and_a_spilled_copy_the_file_has_the_page_of_t() -> None:
    assert in_every_order(guest, handler, worker, spill_writer) > 300


@pytest.mark.slow
@pytest.mark.parametrize("steps", range(1, 4))
def test_a_worker_may_die_after_any_step(steps: int) -> None:
    assert in_every_order(guest, handler, lost_worker(steps), spill_writer) > 1000


def test_the_handler_waits_where_the_ring_is_full_until_there_is_room_or_a_worker_was_quicker() -> None:
    world = World()
    world.ring.room()
    world.ring.put(5)
    steps = serve(world)
    assert [next(steps).name for _ in range(3)] == ["NO_ROOM"] * 3
    world.ring.take(1)
    assert [step.name for step in steps] == ["COPIED", "MARKED", "OPENED"]

    world = World()
    world.ring.room()
    world.ring.put(5)
    steps = serve(world)
    assert next(steps).name == "NO_ROOM"
    world.marks.written[0] = 1
    assert [step.name for step in steps] == ["OPENED"]
    assert not world.marks.copied[0]


def test_a_copy_that_is_made_after_the_group_was_let_go_is_dropped() -> None:
    """By hand, once: this is what the look is for."""
    world = World()
    list(handler(world))
    world.ram = LATER
    list(worker(world))
    assert world.file == 0
    assert not world.marks.written[0]


def test_some_order_is_wrong_if_the_group_is_let_go_before_it_is_marked() -> None:
    """The check finds what it is for."""

    def careless(world: World) -> Iterator[object]:
        world.spare(0, world.ring.room())
        yield
        world.unprotect()
        yield
        world.marks.copied[0] = 1
        world.ring.put(0)

    with pytest.raises(AssertionError):
        in_every_order(guest, careless, worker, spill_writer)


def test_some_order_is_wrong_if_a_worker_looks_before_it_copies() -> None:
    def careless(world: World) -> Iterator[object]:
        mine = np.array([not world.marks.is_captured(0)], np.uint8)
        yield
        world.read()
        yield
        world.write(mine)
        yield
        world.publish(mine)
        world.marks.written[0] = mine[0]

    with pytest.raises(AssertionError):
        in_every_order(guest, handler, careless, spill_writer)


def test_some_order_is_wrong_if_a_worker_marks_a_group_before_it_is_in_the_file() -> None:
    def careless(world: World) -> Iterator[object]:
        world.read()
        mine = np.array([not world.marks.is_captured(0)], np.uint8)
        yield
        world.marks.written[0] = mine[0]
        yield
        world.read()  # a lost one's shard is read again
        world.write(mine)
        yield
        world.publish(mine)

    with pytest.raises(AssertionError):
        in_every_order(guest, handler, careless)
