"""Write faults of another process, taken for it: it has none of its own any more, and nothing of its memory changes."""

from __future__ import annotations

import mmap
import os
import resource
from collections.abc import Callable, Iterator

import pytest
from support.watched import PAGE, Watched

from parallel_fixedram.host import linux
from parallel_fixedram.host.memory.pagemap import occupied
from parallel_fixedram.host.memory.write_faults import take_write_faults

PAGES = 2500
"""More than one call makes writable."""

Memory = Callable[[], mmap.mmap]


def shared() -> mmap.mmap:
    fd = os.memfd_create("ram", os.MFD_CLOEXEC)
    os.ftruncate(fd, PAGES * PAGE)
    memory = mmap.mmap(fd, PAGES * PAGE)
    os.close(fd)
    return memory


def private() -> mmap.mmap:
    memory = mmap.mmap(-1, PAGES * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    return memory


def write(memory: mmap.mmap, every: int) -> int:
    """One byte of every so manieth page becomes another one; returns how many page faults that took."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for at in range(0, PAGES * PAGE, every * PAGE):
        memory[at] = (memory[at] + 1) % 256
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def sums(memory: mmap.mmap, every: int) -> int:
    return sum(memory[at] for at in range(0, PAGES * PAGE, every * PAGE))


@pytest.fixture(params=[shared, private])
def ram(request: pytest.FixtureRequest) -> Iterator[Watched]:
    """Every third page was written, then all were protected, and are not any more."""
    with Watched(request.param) as found:
        found.call(write, 3)
        found.register()
        found.protect()
        found.uffd.unprotect(found.start, found.length)
        yield found


def test_writes_after_it_fault_no_more(ram: Watched) -> None:
    take_write_faults(ram.pid, ram.start, ram.length)
    assert ram.call(write, 3) < 50, "of 834 pages"
    assert ram.call(sums, 3) == 2 * len(range(0, PAGES, 3)), "a byte is another one"


def test_no_page_comes_into_memory_for_it(ram: Watched) -> None:
    before = occupied(ram.pid, ram.start, PAGES, swapped=False).count()
    take_write_faults(ram.pid, ram.start, ram.length)
    assert occupied(ram.pid, ram.start, PAGES, swapped=False).count() == before == len(range(0, PAGES, 3))


def test_what_may_only_be_read_stays_so() -> None:
    def readable() -> mmap.mmap:
        fd = os.memfd_create("ram", os.MFD_CLOEXEC)
        os.pwrite(fd, bytes(PAGE) * PAGES, 0)
        return mmap.mmap(fd, PAGES * PAGE, prot=mmap.PROT_READ)

    with Watched(readable) as found:
        assert found.call(sums, 1) == 0
        take_write_faults(found.pid, found.start, found.length)
        assert found.call(sums, 1) == 0


def test_a_process_that_is_gone_or_memory_that_is_not_there_is_no_error() -> None:
    with Watched(shared) as found:
        pid = found.pid
        take_write_faults(pid, 1 << 40, 16 * PAGE)
    take_write_faults(pid, found.start, found.length)


def test_it_fails_only_where_it_may_not(ram: Watched) -> None:
    linux.process_vm_write_nothing(ram.pid, ram.start, PAGE)
    with pytest.raises(ProcessLookupError):
        linux.process_vm_write_nothing(2**22 + 1, ram.start, PAGE)
