"""What guests that were started from a file take: memory when they run, and time until all RAM of one was read.

RAM is read through the monitor (``pmemsave``) by QEMU itself: pages that are not there yet are found as if the guest
had touched them. Read once more, what is left is the reading.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass

import psutil

from parallel_fixedram.core.errors import HostError, MachineError
from parallel_fixedram.core.units import GIB
from parallel_fixedram.experiments.boot_sector import LOW_RAM
from parallel_fixedram.machines.qemu.monitor import Monitor

_SECONDS = 600.0
"""How long it may take to read all RAM."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What was seen of guests."""

    memory: int
    """Bytes of all of them; what several share counts once."""
    cpu_seconds: float
    """Processor time of all of them so far."""
    first_touch: float | None = None
    """Seconds until all RAM of the first one was read."""
    second_touch: float | None = None
    """Seconds that the same took once more."""


def look_at(guests: Sequence[tuple[str, int]], touch: int) -> Seen:
    """Look at guests that run.

    Args:
        guests: path of a QMP socket and process of each.
        touch: bytes of RAM that the first one has, all of which are read; 0 to read nothing.

    Raises:
        HostError: the kernel does not tell.
        MachineError: the guest does not let itself be read.
    """
    memory = sum(proportional_bytes(pid) for _, pid in guests)
    used = sum(_cpu_seconds(pid) for _, pid in guests)
    if not touch:
        return Seen(memory=memory, cpu_seconds=used)
    with Monitor(guests[0][0]) as monitor:
        first, second = (_read_all(monitor, touch) for _ in range(2))
    return Seen(memory=memory, cpu_seconds=used, first_touch=first, second_touch=second)


def _cpu_seconds(pid: int) -> float:
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.Error as error:
        raise MachineError(f"QEMU {pid} has ended") from error
    return float(times.user + times.system)


def _read_all(monitor: Monitor, size: int) -> float:
    started = time.perf_counter()
    for place, length in ram_places(size):
        monitor.execute("pmemsave", {"val": place, "size": length, "filename": os.devnull}, timeout=_SECONDS)
    return time.perf_counter() - started


def ram_places(size: int) -> list[tuple[int, int]]:
    """Where so many bytes of RAM lie on a ``pc`` machine: address and length of each piece."""
    low = min(size, LOW_RAM)
    return [(0, low), *([(4 * GIB, size - low)] if size > low else [])]


def proportional_bytes(pid: int) -> int:
    """Memory of a process, with pages that several have divided among them (proc_pid_smaps(5), Pss).

    Raises:
        HostError: the kernel does not tell.
    """
    try:
        with open(f"/proc/{pid}/smaps_rollup", encoding="ascii", errors="replace") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("Pss:"))
    except OSError as error:
        raise HostError.from_os(f"cannot see what process {pid} takes", error) from error
    except StopIteration as error:
        raise HostError(f"the kernel does not tell what process {pid} takes") from error
