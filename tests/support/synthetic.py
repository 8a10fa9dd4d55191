"""One made-up run set for every kind of picture; the numbers are plausible, and nobody measured them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from support.run_sets import noise, of_scenario

from parallel_fixedram.experiments.cases import Case
from parallel_fixedram.experiments.results import Gaps, RunSet, Watch

GIB = 1 << 30

CHANNELS = """
name = "channels"
question = "Do parallel channels pay, and where?"
[[case]]
way = "ours"
guest = "dense,size=1GiB"
channels = [1, 2, 4]
direct_io = ["on", "off"]
[[case]]
way = "ours-threads"
guest = "dense,size=1GiB"
channels = [1, 2, 4]
[[case]]
way = "fio"
guest = "dense,size=1GiB"
channels = [1, 2, 4]
direct_io = ["on", "off"]
[[case]]
way = "page-by-page"
guest = "dense,size=1GiB"
direct_io = ["on", "off"]
[[case]]
way = ["sequential", "scan", "copy"]
guest = "dense,size=1GiB"
"""
GAPS = """
name = "gaps"
question = "How many clean pages should be bridged to join two writes?"
[[case]]
way = "ours"
guest = "dense,size=1GiB"
channels = 2
direct_io = "on"
dirty = [0.01, 0.02, 0.05, 0.1, 0.3, 1.0]
gap_pages = [0, 4, 16, 64, "auto"]
"""
GROWTH = """
name = "growth"
question = "How large does the file get while the guest goes on writing?"
[[case]]
way = "ours"
guest = "hot,size=1GiB"
channels = 2
rounds = 12
[[case]]
way = ["qemu-file", "qemu-mapped-ram"]
qemu = {size = "1GiB", data = 0.5, dirty_rate = "200MiB"}
rounds = 12
"""
PAUSES = """
name = "pauses"
question = "How long does a guest stand still?"
[[case]]
way = ["ours"]
qemu = {size = "2GiB", data = [0.05, 0.5], ram = ["memfd", "private"]}
channels = [1, 2]
direct_io = "off"
[[case]]
way = ["qemu-file", "qemu-mapped-ram", "qemu-multifd", "qemu-multifd-direct"]
qemu = {size = "2GiB", data = [0.05, 0.5], ram = ["memfd", "private"]}
"""
WORK = """
name = "work"
question = "What does a busy guest get done meanwhile?"
[[case]]
way = ["ours", "qemu-file", "pause-floor"]
qemu = {size = "1GiB", data = 0.0625, dirty_rate = "1TiB", watched = true}
"""
SCALING = """
name = "scaling"
question = "Does a save take longer because RAM is large, or because there is much in it?"
[[case]]
way = "ours"
guest = ["dense,size=256MiB", "dense,size=1GiB", "dense,size=4GiB", "dense,size=1GiB,fraction=0.01",
         "dense,size=16GiB,fraction=0.01", "dense,size=64GiB,fraction=0.01", "zero,size=64GiB"]
channels = 2
direct_io = "on"
[[case]]
way = "sequential"
guest = ["dense,size=256MiB", "dense,size=1GiB", "dense,size=4GiB"]
"""


def channels(spread: float = 0.03) -> RunSet:
    """Ways over channels."""
    rates = {"scan": 25.0, "copy": 9.0, "page-by-page": 0.9, "sequential": 1.1}

    def made(case: Case, number: int) -> dict[str, Any]:
        many = min(case.channels or 1, 2)
        direct = case.direct_io == "on"
        rate = rates.get(case.way, (1.5 + 0.3 * many) if direct else 2.0 + 0.4 * many)
        rate *= {"ours": 0.9, "ours-threads": 0.7, "page-by-page": 0.4 if direct else 1.0}.get(case.way, 1.0)
        seconds = GIB / rate / 1e9 * noise(case.id, number, spread)
        phases = {"prepare": 0.02, "scan": 0.05} if case.way == "ours" else None
        last = None if case.way in rates else seconds
        total = seconds * (1.1 if direct else 2.0) if case.way not in ("scan", "copy") else seconds
        return {"total": total, "seconds": {"last_write": last, "phases": phases}, "report": _report(case)}

    def timeline(case: Case) -> Any:
        if case.way != "ours":
            return None
        many = case.channels or 1
        shards = 64
        step, size = 0.01, GIB // shards
        return [
            (each % many, each // many * step, (each // many + 0.9) * step, 12288 + each * size, size)
            for each in range(shards)
        ]

    return of_scenario(CHANNELS, made, timeline=timeline)


def _report(case: Case) -> dict[str, Any] | None:
    return {"direct_io": case.direct_io == "on"} if case.way == "ours" else None


def gaps() -> RunSet:
    """Rounds over random dirty pages."""

    def made(case: Case, number: int) -> dict[str, Any]:
        gap = 16 if case.gap_pages == "auto" else int(case.gap_pages or 0)
        pages = GIB // 4096
        dirty = case.dirty or 1.0
        joined = (1 - dirty) ** (gap + 1)
        calls, extra = pages * dirty * joined + 500, pages * dirty * min(gap, 1 / dirty - 1) * (1 - joined)
        seconds = (calls * 30e-6 / 2 + (pages * dirty + extra) * 4096 / 2e9) * noise(case.id, number)
        return {"total": seconds * 1.2 + 0.5, "seconds": {"last_write": seconds}}

    return of_scenario(GAPS, made)


def growth() -> RunSet:
    """Live saves of guests that go on dirtying."""

    def made(case: Case, number: int) -> dict[str, Any]:
        factor = noise(case.id, number)
        stream = tuple((each, int(GIB * (0.5 + 0.15 * factor * each))) for each in range(1, 13))
        fixed = tuple((each, GIB + (1 << 20)) for each in range(1, 13))
        if case.way == "qemu-file":
            return {"total": 2.0 * factor, "growth": stream}
        both = {"total": 1.5 * factor, "growth": fixed}
        return {**both, "sequential": stream} if case.way == "ours" else both

    return of_scenario(GROWTH, made)


def pauses() -> RunSet:
    """Running guests."""

    def made(case: Case, number: int) -> dict[str, Any]:
        assert case.qemu
        factor = noise(case.id, number)
        data = case.qemu.data_bytes
        ours = case.way == "ours"
        ram = data / (8e9 if ours else 1.5e9) / (case.channels or 1) ** 0.5 * factor
        pause = ram + 0.003
        phases = {
            "prepare": 0.1, "scan": ram / 3, "write": ram / 2, "digest": data / 3e9, "sync": data / 2e9,
            "publish": 0.002, "ram": ram, "device_state": 0.0015, "stop": 0.0006, "cont": 0.0002,
        }  # fmt: skip
        total = sum(phases[each] for each in ("prepare", "digest", "sync", "publish")) + pause
        return {
            "total": total if ours else pause + data / 2e9,
            "seconds": {"pause": pause, "phases": phases if ours else None},
            "bytes": {"ram": case.ram_bytes, "data": data},
        }

    return of_scenario(PAUSES, made)


def scaling() -> RunSet:
    """Guests of several sizes, some of them mostly empty."""

    def made(case: Case, number: int) -> dict[str, Any]:
        rate = 1.8e9 if case.way == "ours" else 0.9e9
        seconds = (0.05 + case.data_bytes / rate + case.ram_bytes / 1e12) * noise(case.id, number)
        return {"total": seconds, "bytes": {"ram": case.ram_bytes, "data": case.data_bytes}}

    return of_scenario(SCALING, made)


def work() -> RunSet:
    """A busy guest; of the floor results are older, and tell less."""

    def made(case: Case, number: int) -> dict[str, Any]:
        pause = {"ours": 0.02, "qemu-file": 0.5, "pause-floor": 0.01}[case.way] * noise(case.id, number)
        seconds = {"pause": pause, "lost": pause * 1.1, "gap": pause, "last_write": None}
        still = range(150, 150 + round(pause * 100))
        steps = tuple(0 if step in still else 1000 + step % 7 for step in range(300))
        quiet = Gaps(p50=0.0006, p90=0.0007, p99=0.001, longest=0.004, bins=(0,) * 9 + (100, 800, 90, 10))
        watch = Watch(
            run=(1.0, 2.0),
            save=(1.2, 1.9),
            pause=(1.5, 1.5 + pause),
            gaps=replace(quiet, p99=0.002, longest=pause, bins=(0,) * 9 + (50, 700, 30, 0, 0, 0, 20)),
            quiet=quiet,
            qemu_cpu_seconds=1.0,
            our_cpu_seconds=0.5,
        )
        found = None if case.way == "pause-floor" else watch
        return {"total": 0.7, "seconds": seconds, "work": steps, "watch": found}

    return of_scenario(WORK, made)


ALL = {"channels": channels, "work": work, "gaps": gaps, "growth": growth, "pauses": pauses, "scaling": scaling}
