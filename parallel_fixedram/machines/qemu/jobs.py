"""Jobs of a QEMU, waited for until they have ended: making an image, merging one into another.

::

    created -> running -> [ready, until it is told to complete] -> concluded, until it is dismissed

Source: QEMU qapi/job.json, docs/interop/live-block-operations.rst.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from parallel_fixedram.core.errors import MachineError
from parallel_fixedram.core.words import shown
from parallel_fixedram.machines.qemu.discovery import listed
from parallel_fixedram.machines.qemu.monitor import Monitor
from parallel_fixedram.machines.qemu.session import TimedOut

_LOOK_SECONDS = 0.2
"""How often a job is asked how far it is: only ends are reported by events."""


def run_job(monitor: Monitor, what: str, start: Callable[[str], object], name: str) -> None:
    """Start a job and return when it has ended.

    Args:
        monitor: of the QEMU.
        what: it does, for messages.
        start: has QEMU start it, under the name that it is given.
        name: of the job; no other may have it.

    Raises:
        MachineError: it failed, or QEMU does not answer.
    """
    with monitor.listen("JOB_STATUS_CHANGE") as events:
        start(name)
        while (job := find_job(monitor, name)) and job.get("status") != "concluded":
            events.wait()
    end_job(monitor, what, name)


def follow_job(monitor: Monitor, what: str, name: str) -> Iterator[tuple[int, int]]:
    """See a job through that has to be told to complete; yields how far it is and how far it goes, bytes.

    Raises:
        MachineError: it failed, or QEMU does not answer.
    """
    told = False
    with monitor.listen("JOB_STATUS_CHANGE") as events:
        while (job := find_job(monitor, name)) and job.get("status") != "concluded":
            yield _progress(monitor, job)
            if job.get("status") == "ready" and not told:
                monitor.execute("job-complete", {"id": name})
                told = True
            with contextlib.suppress(TimedOut):
                events.wait(_LOOK_SECONDS)
    end_job(monitor, what, name)


def _progress(monitor: Monitor, job: Mapping[str, Any]) -> tuple[int, int]:
    """How far a job is and how far it goes, bytes."""
    match job:
        case {"current-progress": int(at), "total-progress": int(total)}:
            return at, total
    raise monitor.malformed("query-jobs", job)


def cancel_job(monitor: Monitor, what: str, name: str) -> None:
    """Cancel a job and return when it has ended; one that ended before that is only forgotten.

    A cancelled job may go on to say that it is ready: to complete it then is an error (:func:`follow_job`).

    Raises:
        MachineError: the job ended with an error, which is what a cancelled one does, or QEMU does not answer.
    """
    with monitor.listen("JOB_STATUS_CHANGE") as events:
        with contextlib.suppress(MachineError):  # it may have concluded by itself
            monitor.execute("job-cancel", {"id": name})
        while (job := find_job(monitor, name)) and job.get("status") != "concluded":
            events.wait()
    end_job(monitor, what, name)


def find_job(monitor: Monitor, name: str) -> Mapping[str, Any] | None:
    """What QEMU says of a job; None where there is none."""
    return next((each for each in listed(monitor, "query-jobs") if each.get("id") == name), None)


def end_job(monitor: Monitor, what: str, name: str) -> None:
    """Forget a job that has concluded.

    Raises:
        MachineError: it failed.
    """
    if (job := find_job(monitor, name)) is None:
        raise MachineError(f"{monitor.name!r}: {what}: somebody dismissed the job")
    monitor.execute("job-dismiss", {"id": name})
    if error := job.get("error"):
        raise MachineError(f"{monitor.name!r}: {what}: {shown(str(error))}")
