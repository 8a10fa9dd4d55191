"""How handler and workers share a group after T, without a lock.

::

    handler, before a write:      copy -> copied = 1 -> let the write pass
    worker:                       copy -> look -> write to the file -> written = 1

A worker that copies after the handler has let a write pass sees ``copied`` when it looks, and drops its copy. If it
sees 0, its copy is from before that write, so it is RAM at T. The handler may copy the same group at the same time;
then both write the same bytes. ``written`` is set after the last byte is in the file, and from then on the handler lets
writes to that group pass without a copy. So whoever dies, and whenever: a group in neither state is still protected,
and is done again.

Both sides are generators that yield after every step that another process may observe. Their caller decides how long to
wait at each step; tests run them in every order.
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
    """What was done last."""

    COPIED = auto()
    MARKED = auto()
    NO_ROOM = auto()
    """Nothing was done: the ring is full."""
    LOOKED = auto()
    WRITTEN = auto()
    """In a worker: writing has begun, and it may go on when the channel has settled."""
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
    """The handler's side: make the contents of some groups safe, then let writes to all of them pass.

    Args:
        marks: of all groups.
        ring: where copies go.
        groups: those that are released together.
        is_needed: whether a group has contents that are not safe yet.
        copy: copies a group into a slot of the ring.
        unprotect: lets writes to them pass.
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
    """A worker's side: write some groups to the file.

    Args:
        marks: of all groups.
        groups: a slice of them.
        copy: copies their pages.
        write: begins to write the groups whose element is 1, of which we have copied the contents at T.
        publish: when these have been written, notes which of their pages are in the file.
    """
    copy()
    yield Step.COPIED
    mine = untouched(marks, groups)
    yield Step.LOOKED
    write(mine)
    yield Step.WRITTEN
    publish(mine)
    marks.written[groups][mine != 0] = 1  # last, because after this nobody will do them again
    yield Step.MARKED


def untouched(marks: Marks, groups: slice) -> NDArray[np.uint8]:
    """1 for every group of a slice that nobody has made safe yet."""
    found: NDArray[np.uint8] = ((marks.copied[groups] | marks.written[groups]) == 0).view(np.uint8)
    return found
