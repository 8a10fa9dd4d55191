"""A run whose guest is watched: what it gets done before, meanwhile and after, and what processors are used for."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator
from dataclasses import replace

import psutil

from parallel_fixedram.core.errors import MachineError
from parallel_fixedram.experiments.cases import BOOTS
from parallel_fixedram.experiments.guest_work import Counter, GuestWatch, GuestWork, counter_of, shared_counter
from parallel_fixedram.experiments.measured_guest import MeasuredGuest
from parallel_fixedram.experiments.qemu_guest import QemuGuest
from parallel_fixedram.experiments.results import Watch
from parallel_fixedram.experiments.ways.saved_file import saved_file
from parallel_fixedram.experiments.ways.table import TABLE
from parallel_fixedram.experiments.ways.way import Measured, Run, Stretch


def watched(run: Run) -> Measured:
    """Carry out a run, and look at its guest around it.

    Raises:
        MachineError: the guest does nothing, or has ended.
        FixedRamError: the run failed.
    """
    guest = run.source.qemu
    assert guest is not None, "the scenario's check comes first"
    if run.case.way in BOOTS:
        saved_file(run)  # not in the time that is looked at
    with _counter(run.source, guest) as counter, GuestWatch(counter) as watch:
        before = _qemu_seconds(guest.pid), _our_seconds()
        measured = TABLE[run.case.way].run(replace(run, watch=watch))
        after = _qemu_seconds(guest.pid), _our_seconds()
    work = watch.work()
    return replace(
        measured,
        seconds=replace(measured.seconds, lost=work.lost, gap=work.gap),
        work=work.steps,
        watch=Watch(
            run=work.run,
            save=_since(measured.save_at, work),
            pause=_since(measured.pause_at, work),
            gaps=work.gaps,
            quiet=work.quiet,
            qemu_cpu_seconds=after[0] - before[0] + (measured.qemu_cpu_seconds or 0.0),
            our_cpu_seconds=after[1] - before[1],
        ),
    )


@contextlib.contextmanager
def _counter(source: MeasuredGuest, guest: QemuGuest) -> Iterator[Counter]:
    if guest.spec.is_shared:
        [ram] = source.ram.values()
        yield shared_counter(ram)
    else:
        with counter_of(guest.monitor, guest.pid) as counter:
            yield counter


def _since(at: Stretch | None, work: GuestWork) -> Stretch | None:
    return None if at is None else (at[0] - work.zero, at[1] - work.zero)


def _qemu_seconds(pid: int) -> float:
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.Error as error:
        raise MachineError(f"QEMU {pid} has ended") from error
    return float(times.user + times.system)


def _our_seconds() -> float:
    """Of processes that we have started and that have ended, theirs included."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
