"""How fast is a save, next to fio writing the same bytes the same way, and how much memory does it take?

    python bench/against_fio.py [--size 1GiB] [--repeats 7] [--folder DIR] [--json FILE]

Alternates ours and fio on new files in one run, and prints every sample's median, spread and the median of the pairwise
ratios: absolute figures drift on a shared machine, ratios of neighbours do not. fio is the roofline: it moves the same
amount with the same block size (1 MiB) and number of jobs from one small buffer, and looks at nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import psutil

from parallel_fixedram import Destination, open_guest, restore, save, verify
from parallel_fixedram.core.units import format_size, parse_size
from parallel_fixedram.engine.window import WINDOW_PAGES, nonzero_pages
from parallel_fixedram.guest.process import GuestProcess
from parallel_fixedram.host.facts import host_facts

Sample = tuple[float, float]
"""Seconds to the last write, and to stable storage."""


def ours(guest: GuestProcess, path: str, jobs: int, direct: bool) -> Sample:
    """Save to a new file; the file is verified before the sample counts."""
    fresh(path)
    started = time.perf_counter()
    report = save(
        guest, path, channels=jobs, experimental_multifd=True, direct_io="on" if direct else "off", overwrite=True
    )
    total = time.perf_counter() - started
    assert verify(path).ok, "a fast wrong file is no result"
    return report.rounds[-1].seconds, total


def fio(path: str, size: int, jobs: int, direct: bool) -> Sample:
    """The same amount by fio, once without and once with an fsync at the end, which its runtime includes."""
    return _fio(fresh(path), size, jobs, direct, sync=False), _fio(fresh(path), size, jobs, direct, sync=True)


def _fio(path: str, size: int, jobs: int, direct: bool, *, sync: bool) -> float:
    """Seconds that ``jobs`` processes take to write their parts of one new file, 1 MiB a write."""
    command = [
        "fio", "--name=write", f"--filename={path}", "--rw=write", "--bs=1m", f"--size={size // jobs}",
        f"--offset_increment={size // jobs}", f"--numjobs={jobs}", f"--direct={int(direct)}", "--ioengine=psync",
        f"--end_fsync={int(sync)}", "--group_reporting", "--output-format=json",
    ]  # fmt: skip
    result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return float(size / result["jobs"][0]["write"]["bw_bytes"])


def fresh(path: str) -> str:
    """A path without a file."""
    if os.path.exists(path):
        os.unlink(path)
    return path


def alternate(repeats: int, a: Callable[[], Sample], b: Callable[[], Sample]) -> tuple[list[Sample], list[Sample]]:
    """A B B A A B ..., after one uncounted pair: neither always finds the memory that the other has just given back."""
    a(), b()
    found: tuple[list[Sample], list[Sample]] = ([], [])
    for number in range(repeats):
        for which in (0, 1) if number % 2 else (1, 0):
            found[which].append((a, b)[which]())
    return found


def compare_writes(guest: GuestProcess, size: int, repeats: int, folder: str) -> list[dict[str, Any]]:
    """Ours and fio, buffered and direct, one and two jobs."""
    path, results = os.path.join(folder, "bench.mr"), []
    print(f"{'':24} {'ours GB/s':>24} {'fio GB/s':>24} {'ours/fio':>10}")
    for direct in (False, True):
        for jobs in (1, 2):
            mine, theirs = alternate(
                repeats,
                partial(ours, guest, path, jobs, direct),
                partial(fio, path, size, jobs, direct),
            )
            for index, until in enumerate(("last write", "fsync")):
                a, b = [s[index] for s in mine], [s[index] for s in theirs]
                ratio = statistics.median(y / x for x, y in zip(a, b, strict=True))
                name = f"{'direct' if direct else 'buffered'} {jobs} job(s), {until}"
                print(f"{name:<34} {spread(size, a):>22} {spread(size, b):>22} {ratio:>6.2f}")
                results.append({"name": name, "ours_seconds": a, "fio_seconds": b, "ratio": ratio})
    return results


def spread(size: int, seconds: list[float]) -> str:
    """Median rate and its range, in GB/s."""
    rates = sorted(size / each / 1e9 for each in seconds)
    return f"{statistics.median(rates):.2f} ({rates[0]:.2f}-{rates[-1]:.2f})"


def compare_scan(repeats: int) -> dict[str, Any]:
    """The zero-page test as workers do it, next to the bare numpy reduction over the same memory."""
    pages = np.zeros((1 << 16, 512), np.uint64)  # 256 MiB
    pages[:, 0] = 0  # touched, so that it is memory and not the zero page

    def windows() -> None:
        for first in range(0, len(pages), WINDOW_PAGES):
            nonzero_pages(pages[first : first + WINDOW_PAGES])

    def bare() -> None:
        np.bitwise_or.reduce(pages, axis=1)

    def timed(run: Callable[[], None]) -> Sample:
        started = time.perf_counter()
        run()
        return (time.perf_counter() - started, 0.0)

    mine, theirs = alternate(repeats, lambda: timed(windows), lambda: timed(bare))
    a, b = [s[0] for s in mine], [s[0] for s in theirs]
    ratio = statistics.median(y / x for x, y in zip(a, b, strict=True))
    print(f"{'zero scan, one core':<34} {spread(pages.nbytes, a):>22} {spread(pages.nbytes, b):>22} {ratio:>6.2f}")
    return {"name": "zero scan", "ours_seconds": a, "numpy_seconds": b, "ratio": ratio}


def private_memory(spec: str, folder: str) -> dict[str, Any]:
    """Peak private memory of coordinator and four workers during a save, bytes; the guest process does not count."""
    peak = 0
    with open_guest(spec) as guest:

        def sample(_phase: str, _done: int, _total: int) -> None:
            nonlocal peak
            children = [p for p in psutil.Process().children() if p.pid != guest.pid]
            peak = max(peak, sum(p.memory_full_info().uss for p in [psutil.Process(), *children]))

        path = fresh(os.path.join(folder, "memory.mr"))
        save(guest, path, channels=4, experimental_multifd=True, progress=sample)
        sample("", 0, 0)
    print(f"{'private memory, ' + spec:<44} {format_size(peak)}")
    return {"name": "private memory", "guest": spec, "peak_bytes": peak}


def compare_restore(guest: GuestProcess, folder: str, repeats: int) -> dict[str, Any]:
    """Restore into new shared memory, one and two channels."""
    path, target = fresh(os.path.join(folder, "bench.mr")), f"/dev/shm/bench-{os.getpid()}"
    save(guest, path, direct_io="off")

    def run(channels: int) -> Sample:
        fresh(target)
        report = restore(path, {"pc.ram": Destination(path=target)}, channels=channels, experimental_multifd=True)
        return report.seconds.total, 0.0

    one, two = alternate(repeats, lambda: run(1), lambda: run(2))
    fresh(target)
    a, b = [s[0] for s in one], [s[0] for s in two]
    print(f"{'restore, 1 and 2 channels':<34} {spread(guest.spec.size, a):>22} {spread(guest.spec.size, b):>22}")
    return {"name": "restore", "one_seconds": a, "two_seconds": b}


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare saves with fio, and measure memory.")
    parser.add_argument("--size", type=parse_size, default=parse_size("1GiB"))
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--folder", default=tempfile.gettempdir())
    parser.add_argument("--json", help="where all samples go")
    args = parser.parse_args()
    if shutil.which("fio") is None:
        sys.exit("fio is missing: no roofline, no comparison")
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        results: dict[str, Any] = {"host": host_facts(folder), "size": args.size}
        with open_guest(f"dense,size={args.size}") as guest:
            results["writes"] = compare_writes(guest, args.size, args.repeats, folder)
            results["restore"] = compare_restore(guest, folder, args.repeats)
        results["scan"] = compare_scan(args.repeats)
        results["memory"] = [private_memory(f"{kind}", folder) for kind in ("dense,size=1GiB", "zero,size=64GiB")]
    if args.json:
        with open(args.json, "w") as file:
            json.dump(results, file, indent=1)


if __name__ == "__main__":
    main()
