"""Run QEMU's jobs and wait for their end: making an image, merging one into another.

::

    created -> running -> [ready, until it is told to complete] -> concluded, until it is dismissed

Source: QEMU qapi/job.json, docs/interop/live-block-operations.rst.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from parallel_fixedram.core.errors import MachineError
from parallel_fixedram.core.observer import Observer
from parallel_fixedram.core.words import shown
from parallel_fixedram.machines.qemu.discovery import listed
from parallel_fixedram.machines.qemu.monitor import Monitor
from parallel_fixedram.machines.qemu.session import TimedOut

_LOOK_SECONDS = 0.2
"""How often a job's progress is queried, because events report only changes of state."""


def run_job(monitor: Monitor, what: str, start: Callable[[str], object], name: str) -> None:
    """Start a job and return when it has ended.

    Args:
        monitor: of the QEMU.
        what: the beginning of an error message.
        start: called with ``name``, starts the job under that name.
        name: of the job; no other job may have it.

    Raises:
        MachineError: it failed, or QEMU does not answer.
    """
    with monitor.listen("JOB_STATUS_CHANGE") as events:
        start(name)
        while (job := find_job(monitor, name)) and job.get("status") != "concluded":
            events.wait()
    end_job(monitor, what, name)


def follow_job(monitor: Monitor, what: str, name: str) -> Iterator[tuple[int, int]]:
    """Follow a job that has to be told to complete, until its end; yields bytes done so far, and in all.

    Raises:
        MachineError: it failed, or QEMU does not answer.
    """
    told = False
    with monitor.listen("JOB_STATUS_CHANGE") as events:
        while (job := find_job(monitor, name)) and job.get("status") != "concluded":
            yield int(job.get("current-progress", 0)), int(job.get("total-progress", 0))
            if job.get("status") == "ready" and not told:
                monitor.execute("job-complete", {"id": name})
                told = True
            with contextlib.suppress(TimedOut):
                events.wait(_LOOK_SECONDS)
    end_job(monitor, what, name)


def show_merge(progress: Iterable[tuple[int, int]], observer: Observer) -> int:
    """Tell an observer how far a merge is, from bytes done and bytes in all; returns how many were done at the end."""
    done = whole = 0
    for at, total in progress:
        if total != whole:
            observer.phase("commit", total)
            whole, done = total, 0
        observer.advanced(at - done)
        done = at
    return done


def cancel_job(monitor: Monitor, what: str, name: str) -> None:
    """Cancel a job and return when it has ended; a job that has ended already is dismissed.

    A cancelled job may still become ready; it is an error to complete it then (:func:`follow_job`).

    Raises:
        MachineError: the job ended with an error, as a cancelled one does, or QEMU does not answer.
    """
    with monitor.listen("JOB_STATUS_CHANGE") as events:
        with contextlib.suppress(MachineError):  # it may have concluded by itself
            monitor.execute("job-cancel", {"id": name})
        while (job := find_job(monitor, name)) and job.get("status") != "concluded":
            events.wait()
    end_job(monitor, what, name)


def find_job(monitor: Monitor, name: str) -> Mapping[str, Any] | None:
    """QEMU's entry for a job; None if there is no such job."""
    return next((each for each in listed(monitor, "query-jobs") if each.get("id") == name), None)


def end_job(monitor: Monitor, what: str, name: str) -> None:
    """Dismiss a job that has concluded.

    Raises:
        MachineError: it failed.
    """
    if (job := find_job(monitor, name)) is None:
        raise MachineError(f"{monitor.name!r}: {what}: somebody dismissed the job")
    monitor.execute("job-dismiss", {"id": name})
    if error := job.get("error"):
        raise MachineError(f"{monitor.name!r}: {what}: {shown(str(error))}")
