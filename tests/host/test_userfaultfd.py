"""What a capture takes for granted of the kernel: if one of them differs, a test here fails, and not a file.

Everything is done to memory of another process, from outside.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import signal
import struct
import tempfile
from collections.abc import Iterator

import numpy as np
import pytest
from support.qemu_tools import missing
from support.refusing import Refuse
from support.sources import huge_file
from support.tight_memory import swap
from support.watched import (
    PAGE,
    Watched,
    advise,
    change_access,
    collapse,
    fork,
    kernel_write,
    move,
    punch,
    read,
    register_once_more,
    require_huge_page,
    require_userfaultfd,
    unmap,
    write,
    write_at,
    write_by_threads,
    write_every_page,
)

from parallel_fixedram.core.errors import HostError, MachineError
from parallel_fixedram.host import linux
from parallel_fixedram.host.memory import userfaultfd
from parallel_fixedram.host.memory.anonymous import huge_memory
from parallel_fixedram.host.memory.process_maps import takes_protection
from parallel_fixedram.host.memory.swapped import SwappedPages
from parallel_fixedram.host.memory.userfaultfd import (
    EventWaiting,
    Feature,
    PageFault,
    Remapped,
    Removed,
    Unmapped,
    Userfaultfd,
    missing_features,
)

PAGES = 16
HUGE = 512


@pytest.fixture(autouse=True)
def needed() -> None:
    require_userfaultfd()


def private_memory() -> mmap.mmap:
    return mmap.mmap(-1, PAGES * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def small_pages_where_a_huge_one_could_be() -> memoryview:
    memory = mmap.mmap(-1, 2 * HUGE * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    first = -int(np.frombuffer(memory, np.uint8).ctypes.data) % (HUGE * PAGE)
    return memoryview(memory)[first : first + HUGE * PAGE]


@contextlib.contextmanager
def shared(length: int = PAGES * PAGE) -> Iterator[tuple[Watched, int]]:
    """A process with shared memory, and the descriptor of that, which it has under the same number."""
    fd = os.memfd_create("shared")
    try:
        os.ftruncate(fd, length)
        with Watched(lambda: mmap.mmap(fd, length)) as watched:
            yield watched, fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def watched(kind: str) -> Iterator[tuple[Watched, int]]:
    """A process with memory of a kind, watched but not protected, and how many pages are protected together."""
    with contextlib.ExitStack() as stack:
        match kind:
            case "private":
                found, unit = stack.enter_context(Watched(private_memory)), 1
            case "shared":
                found, unit = stack.enter_context(shared())[0], 1
            case _:
                huge = stack.enter_context(huge_file(2))
                found = stack.enter_context(Watched(lambda: mmap.mmap(huge.fd, huge.size)))
                unit = huge.page_size // PAGE
        found.register()
        yield found, unit


@pytest.fixture(params=["private", "shared", "huge"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def private() -> Iterator[Watched]:
    with watched("private") as (found, _):
        yield found


class TestProtected:
    def test_a_write_waits_until_it_is_let_pass_and_later_ones_do_not(self, kind: str) -> None:
        with watched(kind) as (process, unit):
            process.call(write, 0, 7)
            process.protect()
            process.begin(write, 0, 8)
            assert process.message() == PageFault(process.start)
            process.uffd.unprotect(process.start, unit * PAGE)
            process.end()
            process.call(write, 0, 9)
            assert process.uffd.read() == []
            process.begin(write, unit)
            assert process.message() == PageFault(process.page(unit)), "the next one is protected still"

    def test_a_read_does_not_wait(self, kind: str) -> None:
        with watched(kind) as (process, _):
            process.call(write, 0, 7)
            process.protect()
            assert process.call(read, 0) == 7

    @pytest.mark.parametrize("reads_first", [False, True])
    def test_a_page_that_was_never_touched_waits_to_be_written_too(self, kind: str, reads_first: bool) -> None:
        with watched(kind) as (process, unit):
            process.protect()
            if reads_first:
                assert process.call(read, unit) == 0
            process.begin(write, unit)
            assert process.message() == PageFault(process.page(unit))
            process.uffd.unprotect(process.page(unit), unit * PAGE)
            process.end()
            assert process.call(read, unit) == 1

    @pytest.mark.parametrize("touched", [False, True])
    def test_a_write_of_the_kernel_waits_and_does_not_fail(self, kind: str, touched: bool) -> None:
        with watched(kind) as (process, unit):
            if touched:
                process.call(write, 0, 7)
            process.protect()
            process.begin(kernel_write, 0)
            assert process.message() == PageFault(process.start)
            process.uffd.unprotect(process.start, unit * PAGE)
            assert process.end() == PAGE
            assert process.call(read, 0) == 0

    def test_until_it_is_let_pass_others_see_what_was_there(self) -> None:
        with shared() as (process, fd):
            process.call(write, 3, 7)
            process.register()
            process.protect()
            process.begin(write, 3, 8)
            process.message()
            assert os.pread(fd, 1, 3 * PAGE) == b"\7"
            process.uffd.unprotect(process.page(3), PAGE)
            process.end()
            assert os.pread(fd, 1, 3 * PAGE) == b"\10"

    def test_protecting_again_what_was_let_pass_makes_it_wait_again(self, kind: str) -> None:
        with watched(kind) as (process, unit):
            process.protect()
            process.uffd.unprotect(process.start, unit * PAGE)
            process.call(write, 0)
            process.protect()
            process.begin(write, 0)
            assert process.message() == PageFault(process.start)

    def test_a_fault_comes_once_and_no_more_than_64_at_a_time(self) -> None:
        with shared(80 * PAGE) as (process, _):
            process.register()
            process.protect()
            process.begin(write_by_threads, 80)
            seen: set[int] = set()
            while len(seen) < 80:
                process.wait()
                found = process.uffd.read()
                assert len(found) <= 64
                addresses = {each.address for each in found if isinstance(each, PageFault)}
                assert len(addresses) == len(found)
                assert not addresses & seen
                seen |= addresses
            assert seen == {process.page(page) for page in range(80)}
            process.uffd.unprotect(process.start, process.length)
            process.end()


class TestHugePages:
    def test_a_part_of_a_transparent_huge_page_can_be_let_pass(self) -> None:
        with Watched(lambda: huge_memory(2 * HUGE * PAGE)) as process:
            process.call(write, 0)
            require_huge_page(process.pid, process.start)
            process.register()
            process.protect()
            process.begin(write, 70)
            assert process.message() == PageFault(process.page(70))
            process.uffd.unprotect(process.page(64), 64 * PAGE)
            process.end()
            process.call(write, 127)
            for neighbour in (63, 128):
                process.begin(write, neighbour)
                assert process.message() == PageFault(process.page(neighbour))
                process.uffd.unprotect(process.page(neighbour), PAGE)
                process.end()

    def test_of_a_page_of_hugetlbfs_all_or_nothing_is_protected(self) -> None:
        with watched("huge") as (process, unit):
            with pytest.raises(HostError):
                process.uffd.protect(process.start, PAGE)
            process.protect()
            process.begin(write, 70)
            assert process.message() == PageFault(process.start)
            process.uffd.unprotect(process.start, unit * PAGE)
            process.end()
            process.call(write, 71)


class TestKept:
    """What the kernel does with memory by itself, or for others, takes no protection away."""

    def test_asking_for_huge_pages_afterwards(self) -> None:
        with Watched(small_pages_where_a_huge_one_could_be) as process:
            process.call(write_every_page)
            process.register()
            process.protect()
            process.begin(collapse, 0, HUGE)
            process.end()
            process.begin(write, 70)
            assert process.message() == PageFault(process.page(70))

    @pytest.mark.parametrize("kind", ["private", "shared"])
    def test_a_fork_of_the_process(self, kind: str) -> None:
        with watched(kind) as (process, _):
            process.call(write, 3)
            process.protect()
            process.call(fork)
            assert process.uffd.read() == []
            process.begin(write, 3)
            assert process.message() == PageFault(process.page(3))

    def test_changing_what_the_process_itself_may(self, private: Watched) -> None:
        private.call(write, 3)
        private.protect()
        private.call(change_access)
        private.begin(write, 3)
        assert private.message() == PageFault(private.page(3))


def test_a_write_through_the_file_is_not_seen() -> None:
    """Others who write there by other ways than the memory of the process have to be known, and refused."""
    with shared() as (process, fd):
        process.call(write, 3, 7)
        process.register()
        process.protect()
        os.pwrite(fd, b"x", 3 * PAGE)
        assert process.uffd.read() == []
        assert process.call(read, 3) == ord("x")


class TestSwapped:
    @pytest.mark.parametrize("protected_first", [True, False])
    @pytest.mark.parametrize("kind", ["private", "shared"])
    def test_a_page_in_swap_waits_to_be_written_and_keeps_what_it_holds(self, kind: str, protected_first: bool) -> None:
        with swap(8 << 20) as space, watched(kind) as (process, _):
            process.call(write, 3, 7)
            if protected_first:
                process.protect()
            process.call(advise, linux.MADV_PAGEOUT, 0, PAGES)
            if not space.used():
                pytest.skip("the kernel does not page out")
            assert process.uffd.read() == [], "paging out is no discard"
            if not protected_first:
                process.protect()
            process.begin(write, 3, 8)
            assert process.message() == PageFault(process.page(3))
            process.uffd.unprotect(process.page(3), PAGE)
            process.end()
            assert process.call(read, 3) == 8

    def test_a_private_page_that_was_never_touched_looks_swapped_when_it_is_protected(self, private: Watched) -> None:
        private.call(write, 3)
        private.protect()
        found = SwappedPages(private.pid)
        try:
            assert found.within(private.start, private.length).tolist() == [
                [private.start, 3 * PAGE],
                [private.page(4), (PAGES - 4) * PAGE],
            ]
        finally:
            found.close()


class TestDiscarded:
    @pytest.mark.parametrize("kind", ["private", "shared"])
    def test_dontneed_waits_until_its_event_is_read_and_nothing_can_be_protected_until_then(self, kind: str) -> None:
        with watched(kind) as (process, _):
            process.call(write, 3, 7)
            process.protect()
            process.begin(advise, mmap.MADV_DONTNEED, 3, 2)
            process.wait()
            for change in (process.uffd.protect, process.uffd.unprotect):
                with pytest.raises(EventWaiting):
                    change(process.page(0), PAGE)
            assert process.message() == Removed(process.page(3), process.page(5))
            process.end()
            process.protect()

    def test_protection_goes_with_private_memory_that_is_discarded(self, private: Watched) -> None:
        private.call(write, 3, 7)
        private.protect()
        private.begin(advise, mmap.MADV_DONTNEED, 3, 1)
        private.message()
        private.end()
        private.call(write, 3)
        assert private.uffd.read() == []

    def test_protection_stays_with_shared_memory_that_is_discarded_and_so_does_what_it_holds(self) -> None:
        with watched("shared") as (process, _):
            process.call(write, 3, 7)
            process.protect()
            process.begin(advise, mmap.MADV_DONTNEED, 3, 1)
            process.message()
            process.end()
            assert process.call(read, 3) == 7
            process.begin(write, 3)
            assert process.message() == PageFault(process.page(3))

    def test_madv_remove_tells_before_the_hole_is_there(self) -> None:
        with shared() as (process, fd):
            process.call(write, 3, 7)
            process.register()
            process.protect()
            process.begin(advise, mmap.MADV_REMOVE, 3, 1)
            process.wait()
            assert os.pread(fd, 1, 3 * PAGE) == b"\7"
            assert process.message() == Removed(process.page(3), process.page(4))
            process.end()
            assert os.pread(fd, 1, 3 * PAGE) == b"\0"

    def test_a_hole_punched_through_the_descriptor_tells_nothing_but_the_dontneed_behind_it_does(self) -> None:
        with shared() as (process, fd):
            process.call(write, 3, 7)
            process.register()
            process.protect()
            process.call(punch, fd, 3, 1)
            assert process.uffd.read() == []
            assert process.call(read, 3) == 0
            process.begin(advise, mmap.MADV_DONTNEED, 3, 1)
            assert process.message() == Removed(process.page(3), process.page(4))
            process.end()

    def test_a_hole_in_huge_pages_tells_nothing_either(self) -> None:
        with huge_file(2) as huge, Watched(lambda: mmap.mmap(huge.fd, huge.size)) as process:
            process.call(write, 0, 7)
            process.register()
            process.protect()
            process.call(punch, huge.fd, 0, HUGE)
            assert process.uffd.read() == []
            process.begin(advise, mmap.MADV_DONTNEED, 0, HUGE)
            assert process.message() == Removed(process.start, process.start + huge.page_size)
            process.end()

    def test_madv_free_tells_too(self, private: Watched) -> None:
        private.call(write, 3, 7)
        private.begin(advise, mmap.MADV_FREE, 3, 1)
        assert private.message() == Removed(private.page(3), private.page(4))
        private.end()


class TestMovedAndGone:
    def test_unmapping_waits_until_its_event_is_read(self, private: Watched) -> None:
        private.protect()
        private.begin(unmap, 3, 2)
        assert private.message() == Unmapped(private.page(3), private.page(5))
        private.end()
        with pytest.raises(HostError, match="cannot protect memory at"):
            private.uffd.protect(private.page(3), PAGE)

    def test_memory_that_moves_tells_and_keeps_its_protection(self, private: Watched) -> None:
        private.call(write, 3, 7)
        private.protect()
        private.begin(move, 3, 2)
        moved = private.message()
        assert isinstance(moved, Remapped)
        assert (moved.source, moved.length) == (private.page(3), 2 * PAGE)
        target, others = private.end_reading()
        assert target == moved.target
        assert others == [Unmapped(private.page(3), private.page(5))]
        private.begin(write_at, moved.target)
        assert private.message() == PageFault(moved.target)
        private.uffd.unprotect(moved.target, PAGE)
        private.end()

    def test_a_process_that_has_ended_is_said_to_be_gone(self, private: Watched) -> None:
        os.kill(private.pid, signal.SIGKILL)
        os.waitid(os.P_PID, private.pid, os.WEXITED | os.WNOWAIT)
        for change in (private.uffd.register, private.uffd.protect, private.uffd.unprotect, private.uffd.unregister):
            with pytest.raises(MachineError, match="the process has ended"):
                change(private.start, private.length)


class TestLettingGo:
    def test_closing_wakes_who_waits_and_lets_everything_pass(self, kind: str) -> None:
        with watched(kind) as (process, unit):
            process.protect()
            process.begin(write, 0)
            process.message()
            process.uffd.close()
            process.uffd.close()
            process.end()
            process.call(write, unit)

    def test_the_end_of_the_process_that_holds_it_is_a_close(self, private: Watched) -> None:
        private.protect()
        private.begin(write, 3)
        private.message()
        release, wait = os.pipe()[::-1]
        holder = os.fork()
        if holder == 0:
            os.close(release)
            os.read(wait, 1)
            os._exit(0)
        os.close(wait)
        private.uffd.close()
        os.kill(holder, signal.SIGKILL)
        os.waitpid(holder, 0)
        os.close(release)
        private.end()
        private.call(write, 4)

    def test_unregistering_a_part_wakes_and_lets_pass_there_and_nowhere_else(self, kind: str) -> None:
        with watched(kind) as (process, unit):
            process.protect()
            process.begin(write, 0)
            process.message()
            process.uffd.unregister(process.start, unit * PAGE)
            process.end()
            process.begin(write, unit)
            assert process.message() == PageFault(process.page(unit))
            process.uffd.unregister(process.start, process.length)
            process.end()

    def test_who_discards_waits_no_longer_either_when_it_is_closed(self, private: Watched) -> None:
        private.protect()
        private.begin(advise, mmap.MADV_DONTNEED, 3, 1)
        private.wait()
        private.uffd.close()
        private.end()


class TestRefused:
    @pytest.mark.parametrize("flags", [mmap.MAP_SHARED, mmap.MAP_PRIVATE])
    def test_a_file_on_a_disk_takes_no_write_protection(self, flags: int) -> None:
        with tempfile.TemporaryFile(dir="/var/tmp") as file:
            if linux.is_tmpfs(file.fileno()):
                pytest.skip("/var/tmp is no disk")
            file.truncate(PAGES * PAGE)
            with Watched(lambda: mmap.mmap(file.fileno(), PAGES * PAGE, flags=flags)) as process:
                with pytest.raises(HostError, match="this memory cannot be write-protected"):
                    process.register()
                assert not takes_protection(process.pid, process.start, process.length)

    def test_that_memory_takes_it_is_known_before(self, kind: str) -> None:
        with watched(kind) as (process, _):
            assert takes_protection(process.pid, process.start, process.length)

    def test_a_private_mapping_of_shared_memory_takes_it_too(self) -> None:
        with tempfile.TemporaryFile(dir="/dev/shm") as file:
            file.truncate(PAGES * PAGE)
            with Watched(lambda: mmap.mmap(file.fileno(), PAGES * PAGE, flags=mmap.MAP_PRIVATE)) as process:
                process.register()
                assert takes_protection(process.pid, process.start, process.length)

    def test_a_kernel_that_registers_without_write_protection_is_refused_and_nothing_stays_watched(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with Watched(private_memory) as process:
            monkeypatch.setattr(userfaultfd, "_WRITEPROTECT_BIT", 1 << 62)
            with pytest.raises(HostError, match="this memory cannot be write-protected"):
                process.register()
            process.call(advise, mmap.MADV_DONTNEED, 0, 1)

    def test_what_somebody_else_watches_is_said_so(self) -> None:
        with Watched(private_memory) as process:
            process.register()
            with pytest.raises(HostError, match="somebody else watches this memory"):
                process.call(register_once_more)

    def test_features_that_a_kernel_lacks_are_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        ioctl = fcntl.ioctl

        def of_linux_5_13(fd: int, request: int, argument: bytes) -> bytes:
            if request == 0xC018AA3F:
                api, features, _ = struct.unpack("QQQ", argument)
                if features & (1 << 12 | 1 << 13):
                    raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
                return struct.pack("QQQ", api, (1 << 12) - 1, 0)
            return ioctl(fd, request, argument)

        monkeypatch.setattr(fcntl, "ioctl", of_linux_5_13)
        uffd = Userfaultfd.open_own()
        try:
            with pytest.raises(HostError) as caught:
                uffd.enable()
        finally:
            uffd.close()
        named = "this kernel has no UFFD_FEATURE_WP_HUGETLBFS_SHMEM, UFFD_FEATURE_WP_UNPOPULATED"
        assert caught.value.message == named
        assert missing_features(Feature.EVENT_REMOVE | Feature.WP_UNPOPULATED) == (Feature.WP_UNPOPULATED,)

    def test_it_is_set_up_once(self) -> None:
        uffd = Userfaultfd.open_own()
        try:
            uffd.enable()
            with pytest.raises(HostError, match="cannot set up a userfaultfd: invalid argument"):
                uffd.enable()
        finally:
            uffd.close()

    def test_an_event_that_nobody_asked_for_is_not_taken_for_another(self) -> None:
        reader, writer = os.pipe()
        uffd = Userfaultfd(reader)
        try:
            os.write(writer, struct.pack("<B7x3Q", 0x13, 1, 2, 3))
            with pytest.raises(HostError, match="0x13"):
                uffd.read()
        finally:
            os.close(writer)
            uffd.close()


def test_without_the_right_the_device_is_tried_and_then_the_right_is_named(
    monkeypatch: pytest.MonkeyPatch, refuse: Refuse
) -> None:
    refuse(linux, "userfaultfd", errno.EPERM)
    if not os.path.exists(userfaultfd.DEVICE):
        missing(f"there is no {userfaultfd.DEVICE}: it takes Linux 6.1")
    uffd = Userfaultfd.open_own()
    uffd.enable()
    uffd.close()
    monkeypatch.setattr(userfaultfd, "DEVICE", "/dev/nothing")
    with pytest.raises(HostError) as caught:
        Userfaultfd.open_own()
    assert "CAP_SYS_PTRACE" in caught.value.hint
