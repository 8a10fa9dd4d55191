"""WriteProtect: write all pages as they were at one instant, while the guest runs.

::

    entered   its memory is registered, helpers are forked          what it is about to write is
    rehearse  all of it is protected                                noted
    stopped   what was noted is protected once more: the instant
    after     workers write everything                              copied first
    let_go    nothing is protected any more

The pause does not grow with RAM, and each page is read once. It takes the rights of a debugger, unless the guest's
process hands over its userfaultfd itself.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Self

from parallel_fixedram.core.errors import FixedRamError, HostError, MachineChanged, MachineError, SnapshotFailed
from parallel_fixedram.core.protocols import AddressSpace, Machine
from parallel_fixedram.core.reports.save import SnapshotReport
from parallel_fixedram.core.save_options import CaptureMode
from parallel_fixedram.engine.capture.capture import Capture
from parallel_fixedram.engine.capture.coordinator import FIRST_PASS, Coordinator
from parallel_fixedram.engine.capture.snapshot.groups import Groups
from parallel_fixedram.engine.capture.snapshot.places import Origin, Target
from parallel_fixedram.engine.capture.snapshot.registration import register
from parallel_fixedram.engine.capture.snapshot.snapshot import Snapshot
from parallel_fixedram.engine.capture.task import Task
from parallel_fixedram.engine.pages.round_job import RoundJob
from parallel_fixedram.engine.workers.worker import Job
from parallel_fixedram.host.memory.userfaultfd import Userfaultfd


def address_space(machine: Machine, mode: CaptureMode) -> tuple[AddressSpace | None, str]:
    """How writes of a running machine can be made to wait, if the mode needs it; or why not, as the end of a sentence.

    Raises:
        MachineError: a snapshot was requested by name, and the machine has a device or disk that rules it out.
        HostError: a snapshot was requested by name, and a right or a feature of the kernel is missing.
    """
    if mode not in (CaptureMode.AUTO, CaptureMode.SNAPSHOT):
        return None, ""
    try:
        space = machine.address_space()
    except FixedRamError as error:
        if mode is CaptureMode.SNAPSHOT:
            raise
        return None, error.message
    if mode is CaptureMode.AUTO and space.unproven:
        return None, space.unproven
    return space, ""


class WriteProtect(Capture):
    """Copies each page before its first write; for machines with an AddressSpace.

    Args:
        task: what to save, and how.
    """

    def __init__(self, task: Task) -> None:
        assert task.address_space is not None, "the task needs an address space"
        self._task = task
        self._space = task.address_space
        self._stack = ExitStack()
        self._running: Snapshot | None = None
        self._small = RoundJob(task.ledger, task.writer(), window_pages=task.choice.window_pages)
        self._watch_seconds = self._protect_seconds = self._fix_seconds = 0.0
        self._spilled_pages = 0

    def __enter__(self) -> Self:
        """Register its memory and fork the helpers: workers must not inherit the userfaultfd (Capture.__enter__).

        Raises:
            SnapshotFailed: this is refused or impossible; the machine is as it was.
            MachineError: the machine is gone.
        """
        started = time.perf_counter()
        with self._failing(begun=False), ExitStack() as stack:
            fd, starts = self._space.watch()
            userfaultfd = Userfaultfd(fd)
            stack.callback(userfaultfd.close)
            userfaultfd.enable()
            blocks = [each.block for each in self._task.guest_blocks]
            addresses = register(userfaultfd, blocks, starts)
            self._protected = [address is not None for address in addresses]
            self._running = stack.enter_context(_snapshot_of(self._task, Groups(blocks, addresses), userfaultfd))
            self._running.prepare()
            self._stack = stack.pop_all()
        self._watch_seconds = time.perf_counter() - started
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Release the guest's memory, whatever happened (Capture.__exit__)."""
        self._stack.close()

    def jobs(self) -> Sequence[Job]:
        """One that writes protected blocks, and one that writes small blocks which cannot be (Capture.jobs)."""
        return [self._snapshot.job, self._small]

    def rehearse(self, run: Coordinator, *, torn: str | None) -> None:
        """Protect everything (Capture.rehearse).

        Raises:
            SnapshotFailed: it failed.
            MachineChanged: the last instant was torn, and copies from it are in the file already.
        """
        if torn:
            raise MachineChanged(f"{torn} while it was being saved")
        started = time.perf_counter()
        with self._failing():
            self._snapshot.protect()
            self._task.ledger.map_newly_touched(self._task.guest_blocks)
        self._protect_seconds = time.perf_counter() - started

    def stopped(self, run: Coordinator) -> None:
        """Make this the instant (Capture.stopped)."""
        started = time.perf_counter()
        with self._failing():
            self._snapshot.fix()
        self._fix_seconds = time.perf_counter() - started
        if not all(self._protected):
            self._choose_pages(protected=False)
            run.round(self._small, while_running=False, cached=not self._task.choice.direct)

    def after(self, run: Coordinator) -> None:
        """Write everything as it was at the instant (Capture.after)."""
        task, choice = self._task, self._task.choice
        with self._failing():
            # before pages are chosen: they are chosen by the data maps
            self._snapshot.add_noted()
            self._choose_pages(protected=True)
            tally = run.round(
                self._snapshot.job,
                while_running=True,
                cached=not choice.direct,
                phase=FIRST_PASS,
                shard_pages=choice.shard_pages,
            )
            self._space.has_answered()  # so we have heard of every discard begun before this
            self._snapshot.end()
        present = sum(
            bitmap.count() for bitmap, protected in zip(task.ledger.present, self._protected, strict=True) if protected
        )
        self._spilled_pages = present - tally.written_pages
        run.written_by_others(self._spilled_pages, self._spilled_pages * task.blocks[0].block.page_size)

    def let_go(self) -> SnapshotReport | None:
        """Wait until nothing is protected any more (Capture.let_go)."""
        started = time.perf_counter()
        figures = self._snapshot.finish()
        if figures is None:  # the handler died meanwhile, and the kernel has released everything
            return None
        return SnapshotReport(
            faults=figures.faults,
            ahead_groups=figures.ahead_groups,
            copied_groups=figures.copied_groups,
            let_through=figures.let_through,
            noted_groups=figures.noted_groups,
            spilled_pages=self._spilled_pages,
            ring_waits=figures.ring_waits,
            fault_seconds=figures.fault_seconds,
            watch_seconds=self._watch_seconds,
            protect_seconds=self._protect_seconds,
            fix_seconds=self._fix_seconds,
            let_go_seconds=time.perf_counter() - started,
        )

    def _choose_pages(self, *, protected: bool) -> None:
        """Mark the pages of protected blocks as dirty, or those of the others."""
        ledger = self._task.ledger
        if not protected:
            ledger.map_newly_touched(self._task.guest_blocks)
        for dirty, data, is_protected in zip(ledger.dirty, ledger.data, self._protected, strict=True):
            dirty.words[:] = data.words if is_protected == protected else 0

    @property
    def _snapshot(self) -> Snapshot:
        assert self._running, "it is entered first"
        return self._running

    @contextmanager
    def _failing(self, *, begun: bool = True) -> Iterator[None]:
        """Turn errors into one with the best known cause."""
        try:
            yield
        except MachineError:
            raise
        except FixedRamError as error:
            cause = (self._running and self._running.cause()) or error
            if begun and isinstance(cause, HostError) and cause.errno:  # ENOSPC, say: another way would fail, too
                raise cause from error
            raise SnapshotFailed(cause.message, hint=cause.hint) from error


def _snapshot_of(task: Task, groups: Groups, userfaultfd: Userfaultfd) -> Snapshot:
    asked = task.options.capture
    sources = [each.source for each in task.guest_blocks]
    return Snapshot(
        Origin(groups=groups, sources=sources, data=task.ledger.data),
        Target(
            blocks=task.blocks,
            present=task.ledger.present,
            digests=task.ledger.digests,
            keep_zero_pages=[each.keeps_zero_pages for each in task.guest_blocks],
            max_gap_pages=task.choice.gap_pages,
        ),
        userfaultfd,
        staging=task.staging(),
        window_pages=task.choice.window_pages,
        spill=task.channel.another(),
        max_stall=asked.max_stall,
        capture_memory=asked.capture_memory,
    )
