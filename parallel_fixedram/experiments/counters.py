"""What processors and memory of this host have done since it was booted, and between two looks."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

from parallel_fixedram.host.control_groups import control_groups

_THROTTLED = {"cgroup": ("throttled_time", 1e-9), "cgroup2": ("throttled_usec", 1e-6)}
"""Of ``cpu.stat``: how long a group waited for its quota, and its unit in seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Counters:
    """Sums since the host was booted, in ticks of all its processors unless it says otherwise."""

    passed: int
    idle: int
    stolen: int
    """Given to others by the host of this virtual machine."""
    throttled_seconds: float | None
    """How long control groups of this process waited for their quota of processor time; None if that is not told."""
    swapped_pages: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """What happened between two looks."""

    busy: float
    """Share of the time of all processors in which something ran, 0 to 1."""
    stolen: float
    """Share that was given to others, 0 to 1."""
    throttled_seconds: float | None
    swapped_pages: int


def read_counters(root: str = "/") -> Counters:
    """Look now.

    Args:
        root: where ``proc`` and ``sys`` are.

    Raises:
        OSError: /proc/stat cannot be read.
    """
    with open(f"{root}/proc/stat", encoding="ascii") as file:
        _, *ticks = file.readline().split()
    # user nice system idle iowait irq softirq steal; the time of guests is part of user and nice (proc_stat(5))
    user, nice, system, idle, waiting, irq, soft, stolen = (int(each) for each in ticks[:8])
    return Counters(
        passed=user + nice + system + idle + waiting + irq + soft + stolen,
        idle=idle + waiting,
        stolen=stolen,
        throttled_seconds=_throttled(root),
        swapped_pages=_swapped(root),
    )


def between(first: Counters, second: Counters) -> Use:
    """What happened after the first look and before the second."""
    passed = max(second.passed - first.passed, 0)
    stolen = max(second.stolen - first.stolen, 0)
    throttled = None
    if first.throttled_seconds is not None and second.throttled_seconds is not None:
        throttled = max(second.throttled_seconds - first.throttled_seconds, 0.0)
    # idle time is known to go backwards on some hosts (proc_stat(5))
    busy = passed - max(second.idle - first.idle, 0) - stolen
    return Use(
        busy=min(max(busy / max(passed, 1), 0.0), 1.0),
        stolen=min(stolen / max(passed, 1), 1.0),
        throttled_seconds=throttled,
        swapped_pages=max(second.swapped_pages - first.swapped_pages, 0),
    )


def _throttled(root: str) -> float | None:
    found = None
    for folder, kind in control_groups("self", "cpu", proc=f"{root}/proc"):
        name, unit = _THROTTLED[kind]
        with (
            contextlib.suppress(OSError, LookupError, ValueError),
            open(f"{folder}/cpu.stat", encoding="ascii") as file,
        ):
            seconds = int(dict(line.split() for line in file)[name]) * unit
            found = max(found or 0.0, seconds)
    return found


def _swapped(root: str) -> int:
    with contextlib.suppress(OSError, ValueError), open(f"{root}/proc/vmstat", encoding="ascii") as file:
        found = dict(line.split() for line in file)
        return sum(int(found.get(name, 0)) for name in ("pswpin", "pswpout"))
    return 0
