"""The handler: the process that serves page faults, and the only one with the userfaultfd.

::

    WAITING --PROTECT--> PROTECTING -> PROTECTED --FIX--> CAPTURING --END--> RELEASING -> ENDED
                         what is written is noted         what is about to be    ^
                         and let go                       written is copied      |
                                |                              |                 |
                                +------------ void ------------+-----------------+

The guest waits for it, so it never waits for a file, a lock or a log. If it dies the kernel closes the userfaultfd, and
all writes pass: its death costs the snapshot, not the guest.
"""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Iterator

import numpy as np

from parallel_fixedram.core.errors import FixedRamError
from parallel_fixedram.engine.capture.snapshot.copier import GroupCopier
from parallel_fixedram.engine.capture.snapshot.faults import Clock, Faults
from parallel_fixedram.engine.capture.snapshot.groups import Groups
from parallel_fixedram.engine.capture.snapshot.link import Link
from parallel_fixedram.engine.capture.snapshot.marks import Marks, Phase, Void
from parallel_fixedram.engine.capture.snapshot.messages import Command, Done, receive, send
from parallel_fixedram.engine.capture.snapshot.pieces import USUAL, Pieces
from parallel_fixedram.engine.capture.snapshot.protection import Protection
from parallel_fixedram.engine.capture.snapshot.ring import Ring
from parallel_fixedram.host.memory.userfaultfd import Userfaultfd

_IDLE_MS, _FULL_MS = 20, 5


class Handler:
    """Obeys the coordinator, a piece of work at a time, and serves the guest's faults in between.

    Args:
        userfaultfd: enabled; the blocks of ``groups`` are registered with it.
        groups: what is protected.
        copier: reads them.
        marks: of all groups.
        ring: where copies go.
        control: to the coordinator.
        link: to the spill writer.
        max_stall: how long a write may wait for room in the ring, seconds.
        pieces: how much is done at a time.
        clock: tells how long a write has been waiting, seconds.
    """

    def __init__(
        self,
        userfaultfd: Userfaultfd,
        groups: Groups,
        copier: GroupCopier,
        marks: Marks,
        ring: Ring,
        *,
        control: socket.socket,
        link: Link,
        max_stall: float,
        pieces: Pieces = USUAL,
        clock: Clock = time.monotonic,
    ) -> None:
        self._memory = Protection(userfaultfd, groups, self._beat, pieces)
        self._faults = Faults(self._memory, copier, marks, ring, link, pieces, clock)
        self._marks = marks
        self._control = control
        self._link = link
        self._max_stall = max_stall
        self._work: Iterator[bool] = iter(())
        self._busy = False
        self._because: str | None = None
        self._poll = select.poll()
        for each in (self._memory, control, link):
            self._poll.register(each.fileno(), select.POLLIN)

    @property
    def phase(self) -> int:
        """A Phase."""
        return int(self._marks.phase[0])

    def run(self) -> None:
        """Work until all memory is released; raises EOFError if the coordinator is gone."""
        while self.phase != Phase.ENDED:
            self.turn()

    def turn(self) -> None:
        """One turn of the loop; if it fails, the snapshot is void."""
        try:
            self._turn()
        except (FixedRamError, OSError) as error:
            if self.phase == Phase.RELEASING:
                self._end()  # closing the userfaultfd releases the rest
            self._void(Void.FAILED, str(error))

    def _turn(self) -> None:
        """Serve waiting faults, then at most one command, then one piece of work."""
        timeout = _FULL_MS if self._faults else 0 if self._busy else _IDLE_MS
        ready = {fd for fd, _ in self._poll.poll(timeout)}
        self._beat()
        if self._memory.fileno() in ready:
            self._memory.take()
        if self._link.fileno() in ready and not self._link.hear():
            self._void(Void.SPILL_ENDED)
        self._serve()
        if self._control.fileno() in ready:
            self._obey()
        if not self._faults:
            self._busy = next(self._work, False)

    def _beat(self) -> None:
        self._marks.beat[0] = time.monotonic_ns()

    def _serve(self) -> None:
        lost, self._memory.lost = self._memory.lost, []
        for why, groups in lost:
            if why is Void.DISCARDED and self.phase < Phase.CAPTURING:
                self._marks.noted[groups.start : groups.stop] = 1  # its protection is gone as well
            else:
                self._void(why)
        faulted, self._memory.faulted = self._memory.faulted, []
        self._faults.add(faulted)
        if self._faults.serve() > self._max_stall:
            self._void(Void.RING_FULL)

    def _drain(self) -> None:
        """Process all messages that have arrived so far."""
        while self._memory.take():
            self._beat()
        self._serve()

    def _void(self, why: Void, because: str | None = None) -> None:
        """Declare the snapshot void and release memory; ignored once everything is captured."""
        if self.phase < Phase.RELEASING:
            self._marks.void[0] = why
            self._because = because or self._marks.why_void()
            self._release()

    def _release(self) -> None:
        self._marks.phase[0] = Phase.RELEASING
        self._faults.begin_again()
        self._work = self._releasing()

    def _obey(self) -> None:
        command = receive(self._control, wait=False)
        if command is Command.PROTECT:
            self._work = self._protecting()
        elif command is Command.FIX:
            self._fix()
        elif command is Command.END:
            self._drain()  # a discard of memory before this makes the snapshot void
            if self.phase < Phase.RELEASING:
                self._release()
                send(self._control, Done())
        elif command is Command.ABANDON:
            self._void(Void.ABANDONED)

    def _protecting(self) -> Iterator[bool]:
        self._marks.phase[0] = Phase.PROTECTING
        yield from self._memory.protecting()
        self._marks.phase[0] = Phase.PROTECTED
        send(self._control, Done())
        yield from self._faults.guesses.getting_ready()

    def _fix(self) -> None:
        """The guest stands still, and this is T."""
        self._drain()  # what was written before the guest stood still is noted first
        for _ in self._memory.protecting(lambda part: self._marks.noted[part]):
            self._beat()
        self._faults.all_closed()
        self._faults.tallies.noted = int(np.count_nonzero(self._marks.noted))
        self._marks.phase[0] = Phase.CAPTURING
        self._work = self._faults.capturing()
        send(self._control, Done())

    def _releasing(self) -> Iterator[bool]:
        yield from self._memory.releasing()
        self._end()

    def _end(self) -> None:
        self._memory.close()  # first: whoever reads that it has ended relies on nothing being protected
        self._marks.phase[0] = Phase.ENDED
        send(self._control, self._faults.tallies.figures(self._because))
