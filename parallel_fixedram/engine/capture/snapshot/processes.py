"""The processes of a snapshot besides its workers: handler, spill writer and watchdog."""

from __future__ import annotations

import contextlib
import os
import socket

from parallel_fixedram.core.errors import FixedRamError, HostError, WorkerError
from parallel_fixedram.core.protocols import Channel
from parallel_fixedram.engine.capture.snapshot.child import Child
from parallel_fixedram.engine.capture.snapshot.copier import GroupCopier
from parallel_fixedram.engine.capture.snapshot.handler import Handler
from parallel_fixedram.engine.capture.snapshot.link import Link
from parallel_fixedram.engine.capture.snapshot.marks import Marks, Phase
from parallel_fixedram.engine.capture.snapshot.messages import Answer, Command, Figures, send
from parallel_fixedram.engine.capture.snapshot.pieces import USUAL, Pieces
from parallel_fixedram.engine.capture.snapshot.places import Origin, Target
from parallel_fixedram.engine.capture.snapshot.ring import Ring
from parallel_fixedram.engine.capture.snapshot.spill import SpillWriter
from parallel_fixedram.engine.workers.messages import Ready
from parallel_fixedram.host.memory.userfaultfd import Userfaultfd
from parallel_fixedram.host.processes.watchdog import Watchdog, WatchdogVerdict

ANSWER_SECONDS = 600.0
"""For answers that take longer the more RAM there is; the watchdog notices much sooner if nobody works on them."""

_READY_SECONDS = 30.0
"""For them to begin, which takes no longer where RAM is large; nobody watches the handler yet."""

_SPILL_SECONDS = 30.0
"""How long the spill writer may take for a single group."""

_SLOTS_READY = 32
"""Slots of the ring that get memory before the guest is stopped: enough for a spill writer that keeps up."""

_LET_GO_SECONDS = 10.0
"""How long releasing memory may take if the snapshot is void; after that the kernel does it, all at once."""


class Processes:
    """Forks them in the constructor; from then on only the handler has the userfaultfd.

    Args:
        origin: guest RAM.
        target: the file.
        marks: of all groups.
        ring: for copies on their way from the handler to the spill writer.
        userfaultfd: of the guest's process; closed here.
        spill: the spill writer's channel to the file.
        max_stall: how long a write of the guest may wait, seconds.
        pieces: how much the handler does at a time.

    Raises:
        HostError: no process or no memory can be got; or guest RAM cannot be reached.
    """

    def __init__(
        self,
        origin: Origin,
        target: Target,
        marks: Marks,
        ring: Ring,
        userfaultfd: Userfaultfd,
        *,
        spill: Channel,
        max_stall: float,
        pieces: Pieces = USUAL,
    ) -> None:
        self._marks = marks
        self._ring = ring
        self._figures: Figures | None = None

        def serve(control: socket.socket) -> None:
            theirs.close()  # each closes the other's end, or neither would notice that the other has ended
            _settle_in()
            copier = GroupCopier(origin, marks)
            copier.open()
            ring.get_ready(0, _SLOTS_READY)
            copier.rehearse(ring.room())
            memory = (userfaultfd, origin.groups, copier, marks, ring)
            handler = Handler(*memory, control=control, link=ours, max_stall=max_stall, pieces=pieces)
            handler.turn()  # once while nobody is waiting
            send(control, Ready())
            handler.run()

        def write(control: socket.socket) -> None:
            ours.close()
            send(control, Ready())
            SpillWriter(origin.groups, target, marks, ring, spill).run(control, theirs)

        with contextlib.ExitStack() as stack:
            stack.callback(userfaultfd.close)
            ours, theirs = (stack.enter_context(contextlib.closing(end)) for end in _pair())
            with contextlib.ExitStack() as unless_all_start:
                self._handler = unless_all_start.enter_context(
                    contextlib.closing(Child("serves the guest's page faults", serve))
                )
                userfaultfd.close()  # before anybody else is forked
                self._spill = unless_all_start.enter_context(contextlib.closing(Child("writes spilled pages", write)))
                for child in (self._handler, self._spill):
                    child.answer(_READY_SECONDS)
                self._watchdog = Watchdog(self._handler.pidfd, marks.beat, marks.verdict, seconds=max_stall)
                unless_all_start.pop_all()

    def ask(self, command: Command, seconds: float = ANSWER_SECONDS) -> None:
        """Send the handler a command, and wait until it is carried out.

        Raises:
            FixedRamError: the snapshot is void.
        """
        if error := self.cause():
            raise error
        self._handler.tell(command)
        try:
            self._note(self._handler.answer(seconds))
        except WorkerError as error:
            raise self.cause() or error from None
        if self._figures:
            raise self.cause() or HostError("the snapshot has ended")

    def end_spilling(self) -> None:
        """Return when all copies are in the file.

        Raises:
            FixedRamError: they cannot be written.
        """
        self._spill.tell(Command.END)
        taken = -1
        while not self._spill.has_answer(_SPILL_SECONDS):
            taken, before = self._ring.taken, taken
            if taken == before:
                raise WorkerError("the process that writes spilled pages hangs")
        self._spill.answer(0)

    def are_watched(self) -> bool:
        """Whether the watchdog is alive."""
        return self._watchdog.is_watching()

    def figures(self) -> Figures | None:
        """Wait until memory is released; returns what the handler has done, None if it died before that."""
        with contextlib.suppress(WorkerError):
            while self._figures is None:
                self._note(self._handler.answer(ANSWER_SECONDS))
        return self._figures

    def cause(self) -> FixedRamError | None:
        """Why the snapshot is void; None if it is not, as far as we know."""
        died: FixedRamError | None = None
        try:
            if self._spill.has_answer(0):  # first: the handler only knows that this process has ended, and not why
                self._spill.answer(0)
        except FixedRamError as error:
            return error
        try:
            if self._figures is None and self._handler.has_answer(0):
                self._note(self._handler.answer(0))
        except FixedRamError as error:
            died = error
        if self._figures:
            return HostError(f"the snapshot is void: {self._figures.void}") if self._figures.void else None
        if why := self._marks.why_void():
            return (
                died
                if died and self._marks.verdict[0] == WatchdogVerdict.ENDED
                else HostError(f"the snapshot is void: {why}")
            )
        return died

    def _note(self, answer: Answer) -> None:
        if isinstance(answer, Figures):
            self._figures = answer

    def close(self) -> None:
        """Release memory, and end the processes; may be called more than once."""
        if self._marks.phase[0] != Phase.ENDED:
            self._handler.tell(Command.ABANDON)  # piece by piece is better for the guest than all at once
            self._handler.has_ended(_LET_GO_SECONDS)
        for each in (self._handler, self._spill, self._watchdog):
            each.close()


def _pair() -> tuple[Link, Link]:
    try:
        return Link.pair()
    except OSError as error:
        raise HostError.from_os("cannot start a snapshot", error) from error


def _settle_in() -> None:
    """Set up the handler's process: its session, its priority, and when the OOM killer takes it."""
    os.setsid()  # a terminal must not stop this process along with others
    with contextlib.suppress(OSError):
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
            file.write("1000")  # to be killed first: without it the guest runs on
        os.setpriority(os.PRIO_PROCESS, 0, -10)
