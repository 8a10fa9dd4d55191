"""A handler that is served a turn at a time: its guest's memory is scripted, and its ring tells what was done to it."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from typing import Any

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
from parallel_fixedram.host.memory.userfaultfd import Message, PageFault

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
