"""How handler and workers take turns at a group after T, without a lock.

::

    handler, before a write:      copy -> copied = 1 -> let it be written
    worker:                       copy -> look -> write to the file -> written = 1

A worker that copies after the handler has let the group be written sees ``copied`` when it looks, and drops its copy.
If it sees 0 its copy is older: that of T. The handler may then copy the same group; both write the same bytes.
``written`` comes after the last byte is in the file, and the handler lets that group be written without a copy.
So whoever dies, and whenever: a group that is in neither state is still protected, and is done again.

Both sides are generators that stop after every step that another process may see. What runs them decides how long it
waits at each; tests run them in every order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from enum import Enum, auto

import numpy as np
from numpy.typing import NDArray

from parallel_fixedram.core.bitmap import Bits
from parallel_fixedram.core.protocols import Pages
from parallel_fixedram.engine.capture.snapshot.marks import Marks
from parallel_fixedram.engine.capture.snapshot.ring import Ring


class Step(Enum):
    """What was just done."""

    COPIED = auto()
    MARKED = auto()
    NO_ROOM = auto()
    """Nothing: the ring is full."""
    LOOKED = auto()
    WRITTEN = auto()
    """Begun, in a worker: it goes on when the channel has settled."""
    OPENED = auto()


def let_write(
    marks: Marks,
    ring: Ring,
    groups: Iterable[int],
    *,
    is_needed: Callable[[int], bool],
    copy: Callable[[int, Pages], None],
    unprotect: Callable[[], None],
) -> Iterator[Step]:
    """The handler's side: have the contents of some groups safe, then let all of them be written.

    Args:
        marks: of all groups.
        ring: where copies go.
        groups: those that are let go together.
        is_needed: whether a group has contents that are not safe yet.
        copy: copies a group into a slot of the ring.
        unprotect: lets them be written.
    """
    for group in groups:
        while is_needed(group):
            if ring.is_full():
                yield Step.NO_ROOM
                continue
            copy(group, ring.room())
            yield Step.COPIED
            marks.copied[group] = 1
            yield Step.MARKED
            ring.put(group)
    unprotect()
    yield Step.OPENED


def capture(
    marks: Marks,
    groups: slice,
    *,
    copy: Callable[[], None],
    write: Callable[[Bits], None],
    publish: Callable[[Bits], None],
) -> Iterator[Step]:
    """A worker's side: bring some groups into the file.

    Args:
        marks: of all groups.
        groups: a stretch of them.
        copy: copies their pages.
        write: begins to write those whose element is 1: what was copied is what they were at T.
        publish: tells of these what is in the file, when all of it has been written.
    """
    copy()
    yield Step.COPIED
    mine = untouched(marks, groups)
    yield Step.LOOKED
    write(mine)
    yield Step.WRITTEN
    publish(mine)
    marks.written[groups][mine != 0] = 1  # last: nobody does them again after this
    yield Step.MARKED


def untouched(marks: Marks, groups: slice) -> NDArray[np.uint8]:
    """1 for every group, of a stretch, that nobody has safe yet."""
    found: NDArray[np.uint8] = ((marks.copied[groups] | marks.written[groups]) == 0).view(np.uint8)
    return found
