"""Is this host fit for measurements now? Everything that makes times longer or more varied is looked at and judged.

``look`` reads /proc, /sys and the control groups; other functions only judge what it has read.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from glob import glob

from parallel_fixedram.core.reports.doctor import Finding, Verdict, found
from parallel_fixedram.core.units import format_size
from parallel_fixedram.experiments.counters import Use, between, read_counters
from parallel_fixedram.host.control_groups import control_groups

LOOK_SECONDS = 0.5
"""How long the processors are watched."""

_BUSY, _STOLEN = 0.05, 0.01
"""Shares of processor time from which on others disturb."""
_UNWRITTEN = 64 << 20
"""If more bytes of others than this wait to be written back, the disk is not ours alone."""
_LITTLE = 0.1
"""Share of memory, or of a file system, below which it counts as scarce if it is not known how much is needed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What runs will take at a time, bytes; 0 if that is not known."""

    memory: int = 0
    file: int = 0


def look(folder: str, needs: Needs | None = None, *, root: str = "/", seconds: float = LOOK_SECONDS) -> list[Finding]:
    """Look at the host.

    Args:
        folder: where files would be written.
        needs: how much of what.
        root: where ``proc`` and ``sys`` are.
        seconds: for how long its processors are watched.

    Raises:
        OSError: /proc/stat cannot be read.
    """
    needs = needs or Needs()
    before = read_counters(root)
    time.sleep(seconds)
    use = between(before, read_counters(root))
    memory = _meminfo(root)
    status = os.statvfs(folder)
    return [
        governor(_all(root, "sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_governor")),
        turbo(
            _text(root, "sys/devices/system/cpu/intel_pstate/no_turbo"),
            _text(root, "sys/devices/system/cpu/cpufreq/boost"),
        ),
        *used(use, os.cpu_count() or 1),
        quota(_quotas(root)),
        huge_pages({name: _choice(_text(root, f"sys/kernel/mm/transparent_hugepage/{name}")) for name in _HUGE}),
        free_memory(memory, needs.memory),
        dirty_limits({name: int(_text(root, f"proc/sys/vm/{name}") or 0) for name in _LIMITS}, memory, needs.file),
        unwritten(memory),
        free_space(status.f_bavail * status.f_frsize, status.f_blocks * status.f_frsize, needs.file),
    ]


def noisy(findings: list[Finding]) -> list[Finding]:
    """Those that disturb a measurement."""
    return [each for each in findings if each.verdict in (Verdict.NOISY, Verdict.REFUSED)]


def _noisy(what: str, detail: str, how: str = "") -> Finding:
    return Finding(what=what, verdict=Verdict.NOISY, detail=detail, how=how)


def _not_shown(what: str) -> Finding:
    return Finding(what=what, verdict=Verdict.ABSENT, detail="this host does not show it, as most virtual machines")


def governor(governors: list[str]) -> Finding:
    """What chooses the clock rate of the processors: one word each."""
    what = "governor"
    if not governors:
        return _not_shown(what)
    kinds = ", ".join(f"{each} on {governors.count(each)}" for each in sorted(set(governors)))
    if set(governors) <= {"performance"}:
        return found(what, kinds)
    return _noisy(what, f"{kinds}: the clock follows the load", "cpupower frequency-set -g performance")


def turbo(no_turbo: str | None, boost: str | None) -> Finding:
    """Whether processors run faster for as long as they are cool: contents of ``no_turbo`` or ``boost``."""
    what = "turbo"
    if no_turbo is None and boost is None:
        return _not_shown(what)
    if no_turbo == "1" or (no_turbo is None and boost == "0"):
        return found(what, "off")
    how = "intel_pstate/no_turbo" if no_turbo is not None else "cpufreq/boost"
    value = 1 if no_turbo is not None else 0
    how = f"echo {value} > /sys/devices/system/cpu/{how}"
    return _noisy(what, "on: the first runs, on cool processors, are faster", how)


def used(use: Use, cpus: int) -> Iterator[Finding]:
    """What others did while nothing of ours ran."""
    busy = f"{use.busy:.0%} of {cpus} processors busy"
    yield _noisy("other load", busy, "see top") if use.busy > _BUSY else found("other load", busy)
    stolen = f"{use.stolen:.1%} of processor time given to others by this host's host"
    yield _noisy("steal time", stolen) if use.stolen > _STOLEN else found("steal time", stolen)
    swapped = f"{use.swapped_pages} pages swapped"
    yield _noisy("swapping", swapped, "free memory first") if use.swapped_pages else found("swapping", swapped)


def quota(processors: list[float]) -> Finding:
    """How many processors control groups may take at most, each; an empty list: nothing limits them."""
    what = "quota"
    if not processors:
        return found(what, "no control group limits processor time")
    detail = f"a control group may take {min(processors):g} processors, and then waits"
    return _noisy(what, detail, "run outside that group, or lift cpu.max (cpu.cfs_quota_us)")


_HUGE = ("enabled", "defrag", "shmem_enabled")


def huge_pages(chosen: dict[str, str | None]) -> Finding:
    """The words chosen in these files of transparent_hugepage."""
    what = "huge pages"
    if not any(chosen.values()):
        return _not_shown(what)
    detail = ", ".join(f"{name} {value}" for name, value in chosen.items() if value)
    if chosen.get("defrag") == "always" and chosen.get("enabled") != "never":
        how = "echo madvise > /sys/kernel/mm/transparent_hugepage/defrag"
        return _noisy(what, f"{detail}: a page fault may wait for memory to be moved", how)
    return found(what, detail)


def free_memory(memory: dict[str, int], needed: int) -> Finding:
    """Whether guests and page cache have room: bytes as /proc/meminfo has them."""
    what = "memory"
    available, total = memory.get("MemAvailable"), memory.get("MemTotal")
    if available is None or total is None:
        return Finding(what=what, verdict=Verdict.ABSENT, detail="/proc/meminfo does not tell")
    detail = f"{format_size(available)} of {format_size(total)} available"
    if needed > available:
        return Finding(what=what, verdict=Verdict.REFUSED, detail=f"{detail}, {format_size(needed)} needed")
    if available < max(needed * 2, total * _LITTLE):
        return _noisy(what, f"{detail}: little for page cache besides guests", "end what takes memory")
    return found(what, detail)


_LIMITS = ("dirty_ratio", "dirty_bytes", "dirty_background_ratio", "dirty_background_bytes")


def dirty_limits(limits: dict[str, int], memory: dict[str, int], needed: int) -> Finding:
    """How much of the page cache may be unwritten before writers wait: files of /proc/sys/vm, and of /proc/meminfo."""
    what = "dirty limits"
    base = memory.get("MemAvailable", 0)  # about what the kernel takes the ratios of (global_dirtyable_memory)
    most = limits["dirty_bytes"] or base * limits["dirty_ratio"] // 100
    begins = limits["dirty_background_bytes"] or base * limits["dirty_background_ratio"] // 100
    detail = f"written back from {format_size(begins)} on, writers wait from {format_size(most)} on"
    if needed > most:
        detail += f", and a file has {format_size(needed)}"
        return _noisy(what, detail, "raise vm.dirty_ratio, or read it as a part of what the page cache costs")
    return found(what, detail)


def unwritten(memory: dict[str, int]) -> Finding:
    """What others have written and is not on a disk yet."""
    size = memory.get("Dirty", 0) + memory.get("Writeback", 0)
    detail = f"{format_size(size)} of files wait to be written"
    return _noisy("unwritten", detail, "sync") if size > _UNWRITTEN else found("unwritten", detail)


def free_space(free: int, total: int, needed: int) -> Finding:
    """Whether files fit with room to spare: bytes of the file system."""
    what = "free space"
    detail = f"{format_size(free)} of {format_size(total)} free"
    if needed > free:
        return Finding(what=what, verdict=Verdict.REFUSED, detail=f"{detail}, {format_size(needed)} needed")
    if free < max(needed * 2, total * _LITTLE):
        return _noisy(what, f"{detail}: new files lie where there is room left", "another --folder")
    return found(what, detail)


def _text(root: str, name: str) -> str | None:
    try:
        with open(os.path.join(root, name), encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return None


def _all(root: str, pattern: str) -> list[str]:
    paths = sorted(glob(pattern, root_dir=root))
    return [text for path in paths if (text := _text(root, path))]


def _choice(text: str | None) -> str | None:
    """The word in brackets."""
    return text.partition("[")[2].partition("]")[0] if text else None


def _meminfo(root: str) -> dict[str, int]:
    text = _text(root, "proc/meminfo") or ""
    return {name: int(figure.split()[0]) * 1024 for name, figure in (line.split(":") for line in text.splitlines())}


def _quotas(root: str) -> list[float]:
    """Processors that each control group may take at most, where it has a limit."""
    read: dict[str, Callable[[str], list[str]]] = {
        "cgroup": lambda at: [_text(at, f"cpu.cfs_{each}_us") or "" for each in ("quota", "period")],
        "cgroup2": lambda at: (_text(at, "cpu.max") or "").split(),
    }
    found_ = []
    for folder, kind in control_groups("self", "cpu", proc=os.path.join(root, "proc")):
        match read[kind](folder):
            case [quota_, period] if quota_.isdecimal() and period.isdecimal() and int(period):
                found_.append(int(quota_) / int(period))
    return found_
