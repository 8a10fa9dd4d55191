"""Many writes in flight: where they land, what is said of those that fail, and what the kernel may do in between."""

import ctypes
import errno
import mmap
import os
import platform
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.conformance import aligned
from support.pictures import PAGE, content, picture_of

from parallel_fixedram.host.files import aio
from parallel_fixedram.host.files.aio import IOVEC, Queue, WriteFailed

PAGES = 64

SETUP, DESTROY, GETEVENTS, SUBMIT = range(4)
"""How ``aio._call`` numbers the system calls."""


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    """A file bypassing the page cache, all of it allocated."""
    path = tmp_path / "file"
    path.write_bytes(bytes(PAGES * PAGE))
    try:
        opened = os.open(path, os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC)
    except OSError as error:
        pytest.skip(f"no direct I/O here: {error}")
    try:
        Queue(opened, 1).close()
    except OSError as error:
        pytest.skip(f"no asynchronous I/O here: {error}")
    yield opened
    os.close(opened)


@contextmanager
def queue_of(fd: int, depth: int) -> Iterator[Queue]:
    queue = Queue(fd, depth)
    try:
        yield queue
    finally:
        queue.close()


@contextmanager
def watched_calls(
    monkeypatch: pytest.MonkeyPatch, act: Callable[[int, tuple[Any, ...]], tuple[Any, ...]]
) -> Iterator[list[int]]:
    """Every system call is noted; ``act`` may raise in its place, or change its arguments."""
    made: list[int] = []
    real = aio._call

    def call(index: int, *arguments: Any) -> int:
        made.append(index)
        return real(index, *act(index, arguments))

    with monkeypatch.context() as patch:
        patch.setattr(aio, "_call", call)
        yield made


def begin(queue: Queue, memory: memoryview, pages: list[tuple[int, int]]) -> None:
    """Begin a write of each page of memory, first of a pair, to a page of the file, the second."""
    base = np.frombuffer(memory, np.uint8).ctypes.data
    vectors = np.empty(len(pages), IOVEC)
    vectors["base"] = [base + page * PAGE for page, _ in pages]
    vectors["length"] = PAGE
    places = np.array([place * PAGE for _, place in pages], np.int64)
    every = np.arange(len(pages), dtype=np.int64)
    queue.begin(places, np.full(len(pages), PAGE, np.int64), vectors, every, np.ones(len(pages), np.int64))


def write(queue: Queue, memory: memoryview, pages: list[tuple[int, int]]) -> None:
    begin(queue, memory, pages)
    queue.settle()


def look(fd: int, pages: int = 8) -> str:
    with open(f"/proc/self/fd/{fd}", "rb") as file:
        return picture_of(file.read(pages * PAGE))


LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@pytest.mark.parametrize("depth", [1, 2, 7, 26, 100])
def test_more_writes_than_the_queue_is_deep_are_all_written(fd: int, depth: int) -> None:
    memory = aligned(content(LETTERS))
    with queue_of(fd, depth) as queue:
        begin(queue, memory, [(page, 25 - page) for page in range(26)])
        assert 0 < queue.in_flight <= depth
        queue.settle()
        assert queue.in_flight == 0
    assert look(fd, 26) == LETTERS[::-1]


def test_a_write_gathers_pieces_of_memory_in_their_order(fd: int) -> None:
    memory = aligned(content("ABCDEF"))
    base = np.frombuffer(memory, np.uint8).ctypes.data
    vectors = np.array([(base + page * PAGE, PAGE) for page in (5, 0, 0, 3)], IOVEC)
    with queue_of(fd, 4) as queue:
        queue.begin(np.array([PAGE, 6 * PAGE]), np.array([3 * PAGE, PAGE]), vectors, np.array([0, 3]), np.array([3, 1]))
        queue.settle()
    assert look(fd) == "0FAA00D0"


def test_nothing_to_begin_and_nothing_to_settle_is_nothing_done(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with queue_of(fd, 4) as queue:
        with watched_calls(monkeypatch, lambda _, arguments: arguments) as made:
            queue.settle()
            begin(queue, aligned(bytes(PAGE)), [])
            queue.settle()
        assert made == []


def test_writes_that_the_kernel_takes_a_few_at_a_time_are_all_written(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def a_few(index: int, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        if index != SUBMIT:
            return arguments
        context, count, pointers = arguments
        return context, ctypes.c_long(min(count.value, 3)), pointers

    memory = aligned(content(LETTERS))
    with queue_of(fd, 8) as queue, watched_calls(monkeypatch, a_few) as made:
        begin(queue, memory, [(page, page) for page in range(26)])
        queue.settle()
    assert made.count(SUBMIT) >= 9
    assert look(fd, 26) == LETTERS


def test_a_kernel_that_is_busy_is_asked_again_when_something_is_done(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    submitted: list[int] = []

    def busy(index: int, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        if index == SUBMIT:
            submitted.append(arguments[1].value)
            if len(submitted) == 2:
                raise OSError(errno.EAGAIN, "busy")
            if len(submitted) == 1:
                return arguments[0], ctypes.c_long(2), arguments[2]
        return arguments

    with queue_of(fd, 8) as queue, watched_calls(monkeypatch, busy):
        begin(queue, aligned(content("ABCDEF")), [(page, page) for page in range(6)])
        queue.settle()
    assert submitted == [6, 4, 4]
    assert look(fd) == "ABCDEF00"


def test_a_kernel_that_is_busy_with_nothing_of_ours_is_an_error(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting would be for ever."""

    def busy(index: int, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        if index == SUBMIT:
            raise OSError(errno.EAGAIN, "busy")
        return arguments

    with (
        queue_of(fd, 8) as queue,
        watched_calls(monkeypatch, busy),
        pytest.raises(WriteFailed) as caught,
    ):
        begin(queue, aligned(content("A")), [(0, 3)])
    assert (caught.value.errno, caught.value.offset) == (errno.EAGAIN, 3 * PAGE)


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("depth", [1, 3, 64])
def test_a_write_that_fails_among_others_says_where_and_the_queue_can_be_used_again(fd: int, depth: int) -> None:
    places = [3, 4, 40, 5, 6, 7]
    with queue_of(fd, depth) as queue:
        with file_size_limit(20 * PAGE):
            with pytest.raises(WriteFailed) as caught:
                write(queue, aligned(content("ABCDEF")), list(enumerate(places)))
            assert (caught.value.errno, caught.value.offset) == (errno.EFBIG, 40 * PAGE)
            queue.settle()
            assert queue.in_flight == 0
        begin(queue, aligned(content("XYZ")), [(0, 0), (1, 40), (2, 2)])
        queue.settle()
    assert look(fd, 3) == "X0Z"
    assert look(fd, 41)[-1] == "Y"


def test_memory_that_cannot_be_read_is_an_error_and_no_signal(fd: int) -> None:
    memory = mmap.mmap(-1, PAGE, prot=0)
    with queue_of(fd, 4) as queue:
        address = np.frombuffer(memory, np.uint8).ctypes.data
        queue.begin(
            np.array([2 * PAGE]), np.array([PAGE]), np.array([(address, PAGE)], IOVEC), np.array([0]), np.array([1])
        )
        with pytest.raises(WriteFailed) as caught:
            queue.settle()
    assert (caught.value.errno, caught.value.offset) == (errno.EFAULT, 2 * PAGE)


def test_a_descriptor_that_is_closed_is_an_error(fd: int) -> None:
    gone = os.dup(fd)
    with queue_of(gone, 4) as queue:
        os.close(gone)
        with pytest.raises(WriteFailed) as caught:
            begin(queue, aligned(content("A")), [(0, 1)])
        assert (caught.value.errno, caught.value.offset) == (errno.EBADF, PAGE)
        assert queue.in_flight == 0


def test_a_write_that_stops_before_its_end_has_found_no_space(fd: int) -> None:
    with queue_of(fd, 4) as queue:
        begin(queue, aligned(content("AB")), [(0, 0), (1, 5)])
        queue._lengths[queue._offsets == 5 * PAGE] += PAGE
        with pytest.raises(WriteFailed) as caught:
            queue.settle()
    assert (caught.value.errno, caught.value.offset) == (errno.ENOSPC, 5 * PAGE)


def test_closing_waits_for_what_is_in_flight(fd: int) -> None:
    queue = Queue(fd, 32)
    begin(queue, aligned(content(LETTERS)), [(page, page) for page in range(26)])
    queue.close()
    assert look(fd, 26) == LETTERS


class Libc:
    """``syscall`` that fails with these error numbers, one a call, and then returns 0."""

    def __init__(self, *errors: int) -> None:
        self.errors = list(errors)
        self.numbers: list[int] = []

    def syscall(self, number: int, *_: object) -> int:
        self.numbers.append(number)
        if not self.errors:
            return 0
        ctypes.set_errno(self.errors.pop(0))
        return -1


def calls_go_to(libc: Libc, monkeypatch: pytest.MonkeyPatch, machine: str = "x86_64") -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(aio, "_libc", libc)


@pytest.mark.parametrize(
    ("machine", "numbers"), [("x86_64", [206, 207, 208, 209]), ("aarch64", [0, 1, 4, 2]), ("riscv64", [0, 1, 4, 2])]
)
def test_each_machine_has_its_numbers_of_the_calls(
    monkeypatch: pytest.MonkeyPatch, machine: str, numbers: list[int]
) -> None:
    libc = Libc()
    calls_go_to(libc, monkeypatch, machine)
    for index in (SETUP, DESTROY, GETEVENTS, SUBMIT):
        assert aio._call(index) == 0
    assert libc.numbers == numbers


def test_a_call_that_a_signal_interrupts_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    libc = Libc(errno.EINTR, errno.EINTR, errno.EAGAIN)
    calls_go_to(libc, monkeypatch)
    with pytest.raises(OSError, match="unavailable") as caught:
        aio._call(GETEVENTS)
    assert (caught.value.errno, len(libc.numbers)) == (errno.EAGAIN, 3)


def test_a_machine_whose_numbers_nobody_knows_has_no_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    libc = Libc()
    calls_go_to(libc, monkeypatch, "vax")
    with pytest.raises(OSError, match="not implemented") as caught:
        Queue(0, 1)
    assert caught.value.errno == errno.ENOSYS
    assert libc.numbers == []


@pytest.mark.parametrize(
    ("requests", "numbers", "answer"),
    [
        (64, {"aio-nr": "0\n", "aio-max-nr": "65536\n"}, True),
        (64, {"aio-nr": "65472\n", "aio-max-nr": "65536\n"}, True),
        (65, {"aio-nr": "65472\n", "aio-max-nr": "65536\n"}, False),
        (1, {"aio-nr": "0\n", "aio-max-nr": "0\n"}, False),
        (64, {}, True),
        (64, {"aio-nr": "many\n", "aio-max-nr": "65536\n"}, True),
    ],
)
def test_a_queue_is_available_where_the_kernel_has_room_for_it_or_does_not_tell(
    monkeypatch: pytest.MonkeyPatch, requests: int, numbers: dict[str, str], answer: bool
) -> None:
    class Told:
        def __init__(self, path: str) -> None:
            self.name = path.removeprefix("/proc/sys/fs/")

        def read_text(self) -> str:
            if self.name not in numbers:
                raise FileNotFoundError(self.name)
            return numbers[self.name]

    calls_go_to(Libc(errno.EINVAL), monkeypatch)
    monkeypatch.setattr(aio, "Path", Told)
    assert aio.is_available(requests) is answer


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EPERM])
def test_a_queue_is_not_available_where_the_kernel_refuses(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    calls_go_to(Libc(code), monkeypatch)
    assert not aio.is_available(1)


def test_asking_whether_a_queue_is_available_makes_none(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with watched_calls(monkeypatch, lambda _, arguments: arguments) as made:
        assert aio.is_available(64)
    assert made == [SETUP]


def test_structures_are_as_long_as_the_kernel_has_them() -> None:
    """linux/aio_abi.h and linux/uio.h."""
    assert (aio.IOCB.itemsize, aio.IO_EVENT.itemsize, aio.IOVEC.itemsize) == (64, 32, 16)
