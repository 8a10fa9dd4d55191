"""Merged pages lose their protection: this kernel does so, too, and it can be told that it may have."""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.watched import PAGE, Watched, advise, require_userfaultfd, write

from parallel_fixedram.core.errors import MachineError
from parallel_fixedram.host.memory import ksm

PAGES = 8
MADV_MERGEABLE = 12
KSM = Path("/sys/kernel/mm/ksm")
UNMERGE = "2"


def private_memory() -> mmap.mmap:
    return mmap.mmap(-1, PAGES * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def fill_alike(memory: mmap.mmap) -> None:
    for page in range(PAGES):
        memory[page * PAGE : (page + 1) * PAGE] = b"alike   " * (PAGE // 8)


def merged(pid: int) -> int:
    lines = Path(f"/proc/{pid}/ksm_stat").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("ksm_merging_pages"))


@contextlib.contextmanager
def merging() -> Iterator[None]:
    """The host merges, as fast as it can; then nothing is merged any more."""
    wanted = {"smart_scan": "0", "pages_to_scan": "20000", "sleep_millisecs": "1", "run": "1"}
    if not os.access(KSM / "run", os.W_OK) or not (KSM / "smart_scan").exists():
        pytest.skip("this takes root, and a kernel that merges pages (Linux 6.7)")
    before = {name: (KSM / name).read_text() for name in wanted}
    if before["run"].strip() == "1":
        pytest.skip("this host merges pages already, and is not to be told to stop")
    try:
        for name, value in wanted.items():
            (KSM / name).write_text(value)
        yield
    finally:
        (KSM / "run").write_text(UNMERGE)
        for name, value in before.items():
            (KSM / name).write_text(value)


def test_a_protected_page_that_is_merged_can_be_written_unseen_and_the_counters_tell_that_it_may_be() -> None:
    require_userfaultfd()
    with Watched(private_memory) as process:
        process.call(advise, MADV_MERGEABLE, 0, PAGES)
        process.call(fill_alike)
        process.register()
        process.protect()
        before = ksm.scans()
        assert not ksm.is_merging()
        with merging():
            assert ksm.is_merging()
            while merged(process.pid) < PAGES:
                os.sched_yield()
            process.call(write, 3)
            assert process.uffd.read() == [], "if this kernel keeps the protection, merging is no reason to refuse"
        assert ksm.scans() != before


def test_memory_may_be_merged_where_its_owner_has_said_so() -> None:
    with Watched(private_memory) as process:
        process.call(advise, MADV_MERGEABLE, 2, 3)
        assert ksm.is_mergeable(process.pid, process.start, process.length)
        assert ksm.is_mergeable(process.pid, process.page(4), 1)
        assert not ksm.is_mergeable(process.pid, process.start, 2 * PAGE)
        assert not ksm.is_mergeable(process.pid, process.page(5), PAGE)
        gone = process.pid
    with pytest.raises(MachineError, match=f"process {gone} has ended"):
        ksm.is_mergeable(gone, 0, 1)


def test_a_kernel_that_never_merges_has_merged_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(ksm, "_KSM", tmp_path)
    assert not ksm.is_merging()
    assert ksm.scans() == (0, 0)
