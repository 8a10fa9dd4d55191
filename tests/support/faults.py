"""Faults in the system calls of a process tree, decided one call at a time by the test.

::

    test (supervisor) --fork--> root: seccomp filter, then action() --fork--> its workers, under the same filter
          ^                        |                                             |
          +---- notification ------+------------- every watched call ------------+
          +---- answer: go on, fail with an errno, write less, or SIGKILL somebody

Calls are counted over the whole tree in the order in which they arrive; only those that concern files below ``under``
count, and each says where in our code it was made. What the action returns or raises comes back in the Outcome, with
what the tree wrote to stderr and whether anything of it outlived the root. Linux on x86-64, 5.9 or later.

``Forked`` is for moments that are no system call on a file: the command in a fork of this process, with something done
right before or behind a call of one of its own functions.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import gc
import logging
import mmap
import os
import pickle
import platform
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from types import BuiltinFunctionType, FunctionType, TracebackType
from typing import Any, NamedTuple, NoReturn, Self

from support.cli import GONE_SECONDS, SECONDS, Result

import parallel_fixedram
from parallel_fixedram.cli.main import main
from parallel_fixedram.host import linux


class Place(NamedTuple):
    """A system call: its number, and which arguments say what file it concerns."""

    number: int
    fd: int | None = 0
    """The argument that is the file, or the folder that ``name`` starts from."""
    name: int | None = None


_ON_FD = {"close": 3, "lseek": 8, "pread64": 17, "pwrite64": 18, "flock": 73, "fsync": 74, "fdatasync": 75}
_ON_FD |= {"ftruncate": 77, "fchmod": 91, "fstatfs": 138, "sync_file_range": 277, "fallocate": 285}
_ON_FD |= {"getdents64": 217, "preadv": 295, "pwritev": 296, "preadv2": 327, "pwritev2": 328}
_ON_NAME = {"openat": Place(257, 0, 1), "newfstatat": Place(262, 0, 1), "unlinkat": Place(263, 0, 1)}
_ON_NAME |= {"renameat": Place(264, 2, 3), "linkat": Place(265, 2, 3), "renameat2": Place(316, 2, 3)}
_ON_NAME |= {"rename": Place(82, None, 1), "link": Place(86, None, 1), "unlink": Place(87, None, 0)}
_ON_NAME |= {"rmdir": Place(84, None, 0)}
_CALLS = {name: Place(number) for name, number in _ON_FD.items()} | _ON_NAME | {"mmap": Place(9, 4)}
_CALLS |= {"io_submit": Place(209, None)}  # of the first of its requests
BUT_CLOSE = frozenset(_CALLS) - {"close"}
"""All calls but the one that has its effect though it fails, which cannot be had here."""
_NAMES = {place.number: name for name, place in _CALLS.items()}
_TALKS = {0: "read", 1: "write", 7: "poll", 16: "ioctl", 44: "sendto", 45: "recvfrom", 46: "sendmsg", 47: "recvmsg"}
_TALKS |= {61: "wait4", 101: "ptrace", 232: "epoll_wait", 271: "ppoll", 310: "process_vm_readv"}
_PRCTL = 157
"""Watched but never counted: a new worker's first call, by which the supervisor learns of it."""

_NOTIF_RECV, _NOTIF_SEND = 0xC0502100, 0xC0182101  # SECCOMP_IOCTL_NOTIF_RECV, _SEND: linux/seccomp.h
_NOTIF_SET_FLAGS, _FLAG_SYNC_WAKE_UP = 0x40082104, 1  # faster: caller and supervisor take turns on one processor
_FLAG_CONTINUE = 1  # SECCOMP_USER_NOTIF_FLAG_CONTINUE
_SECCOMP, _SET_MODE_FILTER, _NEW_LISTENER = 317, 1, 8
_PR_SET_NO_NEW_PRIVS = 38
_PIDFD_GETFD = 438
_AT_FDCWD = -100
_IOCB, _BLOCK = struct.Struct("<QIiHhIQQ"), 512  # linux/aio_abi.h, up to aio_nbytes
_SITE, _PID_BITS = struct.Struct("q"), 12
_LISTENER = 8 << _PID_BITS
"""Where, behind all sites, the number of the root's listener is."""
_OURS = os.path.dirname(parallel_fixedram.__file__)
_libc = ctypes.CDLL(None, use_errno=True)


class Call(NamedTuple):
    """A call that waits for an answer."""

    number: int
    """How many counted calls came before it, in the whole tree."""
    name: str
    pid: int
    by_worker: bool
    args: list[int]
    path: str
    site: int
    """Where in our code it was made: the same for the same stack of our own frames."""


class Fail(NamedTuple):
    """Answer: let the call fail without doing anything."""

    errno: int


class Shorten(NamedTuple):
    """Answer: let a read or write at an offset, or io_submit's first request, really be done, but not all of it."""

    length: int = 1 << 62
    """At most so many bytes,"""
    part: float = 1.0
    """and of what was asked for at most this part."""

    def of(self, asked: int) -> int:
        """How many bytes."""
        return min(self.length, int(asked * self.part))


class Lie(NamedTuple):
    """Answer: let pwrite64 say that all is written, whatever is."""

    written: Callable[[bytes, int], Iterable[tuple[bytes, int]]]
    """What is, from the bytes and the offset that were meant: bytes and offsets."""


class Kill(NamedTuple):
    """Answer: SIGKILL these processes and wait until they are gone; whoever is left goes on."""

    pids: Iterable[int]


class Stop(NamedTuple):
    """Answer: SIGSTOP these processes, which stay where they are."""

    pids: Iterable[int]


@dataclass(slots=True)
class Run:
    """A process tree under the filter, and in the end what became of it."""

    root: int
    sites: mmap.mmap = field(repr=False)
    """Of every process, where in our code it last called the system."""
    pidfds: dict[int, int] = field(default_factory=dict)
    """Of every process seen; opened while it waits for us, so that none names another process."""
    calls: list[Call] = field(default_factory=list)
    faults: list[Call] = field(default_factory=list)
    """The calls that were not simply let go."""
    exit_code: int = 0
    """Of the root; minus the signal's number if one killed it."""
    value: Any = None
    error: BaseException | None = None
    stderr: str = ""
    hung: bool = False
    orphans: tuple[int, ...] = ()
    """Processes that outlived the root by more than GONE_SECONDS."""

    def hit(self, *names: str) -> bool:
        """Whether one of the faults hit a call of these names."""
        return any(call.name in names for call in self.faults)

    def workers(self) -> tuple[int, ...]:
        return tuple(pid for pid in self.pidfds if pid != self.root)

    def alive(self, pids: Iterable[int], seconds: float = 0) -> tuple[int, ...]:
        """Those that have not ended within so many seconds."""
        end = time.monotonic() + seconds
        return tuple(p for p in pids if not select.select([self.pidfds[p]], [], [], max(end - time.monotonic(), 0))[0])

    def kill(self, pids: Iterable[int], signum: int = signal.SIGKILL) -> None:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfds[pid], signum)

    def site(self, pid: int) -> int:
        """Where in our code that process last called the system."""
        return int(_SITE.unpack_from(self.sites, _place_of(pid))[0])


Decide = Callable[[Call, Run], Fail | Shorten | Lie | Kill | Stop | None]


def run(
    action: Callable[[], Any], *, under: str, decide: Decide, seconds: float = 30.0, every_call: bool = False
) -> Run:
    """Run ``action`` in a fork of this process; ``decide`` answers every call that concerns files below ``under``.

    With ``every_call`` also those by which processes that it forks wait, talk and look at memory (their path is empty).
    """
    result, stderr = os.memfd_create("result"), os.memfd_create("stderr")
    sites = mmap.mmap(-1, (8 << _PID_BITS) + 8)
    root = os.fork()
    if root == 0:
        _be_root(action, result, stderr, sites, [*_NAMES, *(_TALKS if every_call else ())])
    tree = Run(root, sites, {root: os.pidfd_open(root)})
    received: list[int] = []
    try:
        received.append(_listener_of(tree))
        _supervise(received[0], tree, under, decide, time.monotonic() + seconds)
    finally:
        tree.hung = bool(tree.alive([root]))
        tree.orphans = tree.alive(tree.workers(), 0 if tree.hung else GONE_SECONDS)
        tree.kill(tree.pidfds)
        tree.exit_code = os.waitstatus_to_exitcode(os.waitpid(root, 0)[1])
        pickled, text = (os.pread(fd, os.fstat(fd).st_size, 0) for fd in (result, stderr))
        sites.close()
        for fd in (result, stderr, *received, *tree.pidfds.values()):
            os.close(fd)
    tree.stderr = text.decode()
    tree.value, tree.error = pickle.loads(pickled) if pickled else (None, None)
    return tree


def why_not() -> str:
    """Why faults cannot be injected on this machine; empty if they can."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return "fault injection needs Linux on x86-64"
    try:
        outcome = run(lambda: os.stat("/proc"), under="/proc", decide=lambda call, tree: None)
    except OSError as error:
        return f"seccomp user notification is not permitted here: {error}"
    return "" if outcome.calls else "seccomp user notification stays silent here"


def _listener_of(tree: Run) -> int:
    """The descriptor on which the kernel asks; until we have it the root can do nothing but write down its number."""
    while not (number := _SITE.unpack_from(tree.sites, _LISTENER)[0]):
        if not tree.alive([tree.root]):
            raise OSError(errno.EPERM, "the filter was refused")
        os.sched_yield()
    listener = int(_libc.syscall(_PIDFD_GETFD, tree.pidfds[tree.root], number, 0))
    if listener < 0:
        raise OSError(ctypes.get_errno(), "pidfd_getfd")
    os.set_inheritable(listener, False)
    return listener


def _supervise(listener: int, tree: Run, under: str, decide: Decide, deadline: float) -> None:
    """Answer until every process of the tree has ended, or too long."""
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    with contextlib.suppress(OSError):  # before Linux 6.6
        fcntl.ioctl(listener, _NOTIF_SET_FLAGS, _FLAG_SYNC_WAKE_UP)
    root_ended = False
    while time.monotonic() < deadline:
        events = poll.poll(20)
        if events and events[0][1] & select.POLLIN:
            _answer_next(listener, tree, under, decide)
        elif events or not tree.alive(tree.pidfds):  # a hang-up says that all are gone, but not before Linux 6.11
            break
        if not root_ended and not tree.alive([tree.root]):
            root_ended, deadline = True, time.monotonic() + GONE_SECONDS
    tree.alive([tree.root], 0 if time.monotonic() > deadline else GONE_SECONDS)  # a hang-up comes a bit before the end


def _answer_next(listener: int, tree: Run, under: str, decide: Decide) -> None:
    notice = bytearray(80)
    try:
        fcntl.ioctl(listener, _NOTIF_RECV, notice)
        cookie, pid, _, number, _, _, *args = struct.unpack("<QIIiIQ6Q", notice)
        if pid not in tree.pidfds:  # new, or a thread
            pid = int(_status(pid, "Tgid"))
        if pid not in tree.pidfds:
            tree.pidfds[pid] = os.pidfd_open(pid)
        path = _path(pid, _CALLS[_NAMES[number]], args) if number in _NAMES else ""
    except (FileNotFoundError, ProcessLookupError):
        return  # it was killed while it waited
    value, error, flags = 0, 0, _FLAG_CONTINUE
    talks = number in _TALKS and pid != tree.root
    if talks or path == under or path.startswith(under.rstrip("/") + "/"):
        call = Call(
            len(tree.calls), _NAMES.get(number) or _TALKS[number], pid, pid != tree.root, args, path, tree.site(pid)
        )
        tree.calls.append(call)
        if (fault := decide(call, tree)) is not None:
            tree.faults.append(call)
        if isinstance(fault, Fail):
            error, flags = -fault.errno, 0
        elif isinstance(fault, Shorten):
            value, flags = _do_less(call, fault)
        elif isinstance(fault, Lie):
            value, flags = _write_otherwise(call, fault), 0
        elif isinstance(fault, Kill):
            tree.kill(fault.pids)
            tree.alive(fault.pids, GONE_SECONDS)
        elif isinstance(fault, Stop):
            tree.kill(fault.pids, signal.SIGSTOP)
    with contextlib.suppress(FileNotFoundError):
        fcntl.ioctl(listener, _NOTIF_SEND, struct.pack("<QqiI", cookie, value, error, flags))


def _path(pid: int, place: Place, args: list[int]) -> str:
    """The path of the file that a call concerns; empty if there is none."""
    name, fd = "", _AT_FDCWD if place.fd is None else ctypes.c_int(args[place.fd]).value
    if place == _CALLS["io_submit"]:
        _, _, _, _, _, fd = _IOCB.unpack(_memory(pid, _first_request(pid, args), _IOCB.size))[:6]
    elif place.name is not None:
        name = os.fsdecode(_memory(pid, args[place.name], 4096).partition(b"\0")[0])
    try:
        start = "" if name.startswith("/") else os.readlink(f"/proc/{pid}/{'cwd' if fd == _AT_FDCWD else f'fd/{fd}'}")
    except FileNotFoundError:
        return ""
    return os.path.join(start, name).removesuffix("/")


def _memory(pid: int, address: int, length: int) -> bytes:
    with open(f"/proc/{pid}/mem", "rb", 0) as memory:
        return os.pread(memory.fileno(), length, address)


def _first_request(pid: int, args: list[int]) -> int:
    """Where the first request of an io_submit is."""
    return int(struct.unpack("Q", _memory(pid, args[2], 8))[0])


def _pieces(pid: int, address: int, count: int) -> list[tuple[int, int]]:
    """Addresses and lengths of the memory that a gathered write is of."""
    return list(struct.iter_unpack("QQ", _memory(pid, address, 16 * count)))


def _do_less(call: Call, less: Shorten) -> tuple[int, int]:
    """Have a part done of what was to be; returns the call's result, and whether it is still to be made."""
    if call.name == "io_submit":
        return _shorten_request(call, less)
    if call.name in ("pread64", "preadv", "preadv2"):
        return _read_less(call, less), 0
    pieces = [(call.args[1], call.args[2])]
    if call.name in ("pwritev", "pwritev2"):
        pieces = _pieces(call.pid, call.args[1], call.args[2])
    data = b"".join(_memory(call.pid, address, length) for address, length in pieces)
    with open(f"/proc/{call.pid}/fd/{call.args[0]}", "r+b", 0) as file:
        return os.pwrite(file.fileno(), data[: less.of(len(data))], call.args[3]), 0


def _read_less(call: Call, less: Shorten) -> int:
    """Read a part of what was to be read; returns how much that was."""
    pieces = [(call.args[1], call.args[2])] if call.name == "pread64" else _pieces(call.pid, *call.args[1:3])
    with open(f"/proc/{call.pid}/fd/{call.args[0]}", "rb", 0) as file:
        data = os.pread(file.fileno(), less.of(sum(length for _, length in pieces)), call.args[3])
    with open(f"/proc/{call.pid}/mem", "r+b", 0) as memory:
        rest = data
        for address, length in pieces:
            os.pwrite(memory.fileno(), rest[:length], address)
            rest = rest[length:]
    return len(data)


def _shorten_request(call: Call, less: Shorten) -> tuple[int, int]:
    """In the caller's memory: its first piece is all that it writes, and shorter, by whole blocks of a device."""
    request = _first_request(call.pid, call.args)
    buf, count = _IOCB.unpack(_memory(call.pid, request, _IOCB.size))[6:8]
    pieces = _pieces(call.pid, buf, count)
    length = min(less.of(sum(length for _, length in pieces)), pieces[0][1]) & -_BLOCK
    with open(f"/proc/{call.pid}/mem", "r+b", 0) as memory:
        os.pwrite(memory.fileno(), struct.pack("QQ", pieces[0][0], length), buf)
        os.pwrite(memory.fileno(), struct.pack("Q", 1), request + _IOCB.size - 8)
    return 0, _FLAG_CONTINUE


def _write_otherwise(call: Call, lie: Lie) -> int:
    """Write something else than pwrite64 was asked to write; returns how much that was."""
    data = _memory(call.pid, call.args[1], call.args[2])
    with open(f"/proc/{call.pid}/fd/{call.args[0]}", "r+b", 0) as file:
        for other, offset in lie.written(data, call.args[3]):
            os.pwrite(file.fileno(), other, offset)
    return len(data)


def _be_root(action: Callable[[], Any], result: int, stderr: int, sites: mmap.mmap, calls: Iterable[int]) -> NoReturn:
    try:
        _note_sites(sites)
        gc.disable()  # a collection would touch, and so copy, all memory that is shared with the supervisor
        os.dup2(stderr, 2)
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115 - pytest's own would keep what is written
        listener = _install_filter(calls)
        _SITE.pack_into(sites, _LISTENER, listener)
        os.close(listener)  # so that the tree is set free should the supervisor die
        try:
            pickled = pickle.dumps((action(), None))
        except Exception as error:
            pickled = pickle.dumps((None, error))
        os.write(result, pickled)
        os._exit(0)
    finally:
        os._exit(70)


def _note_sites(sites: mmap.mmap) -> None:
    """Have this process and its workers note where they are before every function that makes system calls."""
    getpid, getframe = os.getpid, sys._getframe

    def noting(function: Callable[..., object]) -> Callable[..., object]:
        def noted(*args: object, **options: object) -> object:
            site, frame = 0, getframe(1)
            while frame is not None:
                if _OURS in frame.f_code.co_filename:
                    site = hash((site, frame.f_code.co_filename, frame.f_code.co_firstlineno, frame.f_lasti))
                frame = frame.f_back
            _SITE.pack_into(sites, _place_of(getpid()), site)
            return function(*args, **options)

        return noted

    for module, kind in ((os, BuiltinFunctionType), (fcntl, BuiltinFunctionType), (linux, FunctionType)):
        for name, function in [*vars(module).items()]:
            if isinstance(function, kind) and not name.startswith("_"):
                setattr(module, name, noting(function))


def _place_of(pid: int) -> int:
    return _SITE.size * (pid & ((1 << _PID_BITS) - 1))


def _install_filter(calls: Iterable[int]) -> int:
    """Have the kernel ask about each of these calls from now on; returns the descriptor on which it asks."""

    def instruction(code: int, jump_true: int, jump_false: int, value: int) -> bytes:
        return struct.pack("<HBBI", code, jump_true, jump_false, value)

    load, jump_equal, ret = 0x20, 0x15, 0x06  # linux/bpf_common.h
    allow, notify, x86_64 = 0x7FFF0000, 0x7FC00000, 0xC000003E  # linux/seccomp.h, linux/audit.h
    numbers = [*calls, _PRCTL]
    program = [instruction(load, 0, 0, 4), instruction(jump_equal, 1, 0, x86_64), instruction(ret, 0, 0, allow)]
    program.append(instruction(load, 0, 0, 0))
    program += [instruction(jump_equal, len(numbers) - at, 0, number) for at, number in enumerate(numbers)]
    program += [instruction(ret, 0, 0, allow), instruction(ret, 0, 0, notify)]
    code = ctypes.create_string_buffer(b"".join(program))
    header = ctypes.create_string_buffer(struct.pack("<H6xQ", len(program), ctypes.addressof(code)))
    _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    listener: int = _libc.syscall(_SECCOMP, _SET_MODE_FILTER, _NEW_LISTENER, header)
    if listener < 0:
        raise OSError(ctypes.get_errno(), "seccomp")
    return listener


class Moment(NamedTuple):
    """A moment in the life of the command: a call of a function that it looks up in ``owner``."""

    owner: Any
    """A class or a module."""
    name: str
    behind: bool = False
    """Right behind the call, or right before it."""
    about: object = None
    """What has to be among the call's arguments; None for any call."""
    since: Moment | None = None
    """What has to have happened before, in any of the command's processes."""


def before(owner: object, name: str, about: object = None, since: Moment | None = None) -> Moment:
    return Moment(owner, name, False, about, since)


def behind(owner: object, name: str, about: object = None, since: Moment | None = None) -> Moment:
    return Moment(owner, name, True, about, since)


class Forked:
    """The command in a fork of this process, in a session of its own; context manager that ends with nobody left.

    Args:
        argv: verb and arguments.
        moment: when to act, in whichever of the command's processes is the first to come there.
        act: what to do then; gets the arguments of the call.
        prepare: done before the command starts, in its process.
    """

    _SHARED = struct.Struct("dqqq")  # when it acted, growth in bytes, whether it may act, number of children

    def __init__(
        self,
        *argv: object,
        moment: Moment | None = None,
        act: Callable[..., object] = lambda *_: None,
        prepare: Callable[[], object] = lambda: None,
    ) -> None:
        self._shared = mmap.mmap(-1, mmap.PAGESIZE)
        self._once, once = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        os.write(once, b"!")
        os.close(once)
        self._out, self._err = os.memfd_create("stdout"), os.memfd_create("stderr")
        self._argv = [*map(str, argv)]
        self._pidfds: dict[int, int] = {}
        self.pid = os.fork()
        if self.pid == 0:
            self._be_command(moment, act, prepare)
        self._pidfds[self.pid] = os.pidfd_open(self.pid)
        self._code: int | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pid in (self.pid, *self.children()):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfds[pid], signal.SIGKILL)
        if self._code is None:
            os.waitpid(self.pid, 0)
        for fd in (self._once, self._out, self._err, *self._pidfds.values()):
            os.close(fd)

    @property
    def acted(self) -> float:
        """When it acted, by the monotonic clock; 0 if the moment never came."""
        return float(self._SHARED.unpack_from(self._shared)[0])

    @property
    def growth(self) -> int:
        """By how many bytes the memory of the command itself had grown at its highest; once it has ended by itself."""
        return int(self._SHARED.unpack_from(self._shared)[1])

    def finish(self) -> Result:
        """Wait for the end of the command itself."""
        assert select.select([self._pidfds[self.pid]], [], [], SECONDS)[0], "it hangs"
        self._code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        out, err = (os.pread(fd, os.fstat(fd).st_size, 0).decode() for fd in (self._out, self._err))
        return Result(self._code, out, err)

    def children(self) -> list[int]:
        """Processes that the command or a child of it has forked, but for those that are gone without a trace."""
        count = self._SHARED.unpack_from(self._shared)[3]
        for pid in struct.unpack_from(f"{count}q", self._shared, self._SHARED.size):
            if pid not in self._pidfds:
                with contextlib.suppress(ProcessLookupError):
                    self._pidfds[pid] = os.pidfd_open(pid)
        return [pid for pid in self._pidfds if pid != self.pid]

    def left(self) -> list[int]:
        """Children that outlive GONE_SECONDS from now on."""
        end = time.monotonic() + GONE_SECONDS
        return [
            pid
            for pid in self.children()
            if not select.select([self._pidfds[pid]], [], [], max(end - time.monotonic(), 0))[0]
        ]

    # --- in the command's process

    def _be_command(self, moment: Moment | None, act: Callable[..., object], prepare: Callable[[], object]) -> NoReturn:
        code = 70
        try:
            os.setsid()
            gc.freeze()
            logging.getLogger().handlers.clear()  # pytest's
            for fd, name in ((self._out, "stdout"), (self._err, "stderr")):
                number = ("stdout", "stderr").index(name) + 1
                os.dup2(fd, number)
                setattr(sys, name, open(number, "w", closefd=False))  # noqa: SIM115 - as Python's own
            self._count_children()
            if moment is not None:
                self._act_at(moment, act)
            prepare()
            start = _peak_from_now_on()
            code = main(self._argv)
            self._note(1, (int(_status("self", "VmHWM")) << 10) - start)
        finally:
            sys.stdout.flush()
            os._exit(code)

    def _note(self, at: int, value: float) -> None:
        struct.pack_into("dqqq"[at], self._shared, 8 * at, value)

    def _count_children(self) -> None:
        fork = os.fork

        def counted() -> int:
            pid = fork()
            if pid == 0:
                count = self._SHARED.unpack_from(self._shared)[3]  # children start one behind the other
                struct.pack_into("q", self._shared, self._SHARED.size + 8 * count, os.getpid())
                self._note(3, count + 1)
                told.send(b"!")
            else:
                tell.recv(1)
            return pid

        tell, told = socket.socketpair()
        os.fork = counted

    def _act_at(self, moment: Moment, act: Callable[..., object]) -> None:
        def acts(*arguments: object) -> None:
            if self._SHARED.unpack_from(self._shared)[2]:
                with contextlib.suppress(BlockingIOError):
                    if os.read(self._once, 1):
                        self._note(0, time.monotonic())
                        act(*arguments)

        self._note(2, moment.since is None)
        if moment.since is not None:
            _watch(moment.since, lambda *_: self._note(2, True))
        _watch(moment, acts)


def _watch(moment: Moment, act: Callable[..., object]) -> None:
    """Have that done at every such moment in this process."""
    real = getattr(moment.owner, moment.name)

    def watched(*args: object, **options: object) -> object:
        wanted = moment.about is None or any(moment.about is each or moment.about == each for each in args)
        if wanted and not moment.behind:
            act(*args)
        result = real(*args, **options)
        if wanted and moment.behind:
            act(*args)
        return result

    setattr(moment.owner, moment.name, watched)


def _peak_from_now_on() -> int:
    """Forget how large this process was; returns how large it is."""
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    return int(_status("self", "VmRSS")) << 10


def _status(pid: int | str, name: str) -> str:
    """A field of /proc/PID/status, without its unit."""
    with open(f"/proc/{pid}/status") as file:
        return next(line.split()[1] for line in file if line.startswith(f"{name}:"))
