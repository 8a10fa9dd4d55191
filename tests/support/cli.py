"""The command as people run it: a process of its own, what it says, how it ends, and what it leaves behind."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import io
import json
import os
import resource
import select
import signal
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import pytest
from support import prepared
from support.leftovers import children
from support.qemu_tools import with_own_mounts

from parallel_fixedram.cli.main import main
from parallel_fixedram.host import linux

SECONDS = 60.0
"""No command of a test takes longer, however busy the host is."""
GONE_SECONDS = 2.0
"""How long the workers of a dead coordinator may take to go; the promise is 0.1 s, a busy test machine gets more."""

_CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH = 1, 2  # linux/capability.h
_CAPABILITY_VERSION_3 = 0x20080522
_PR_CAPBSET_DROP = 24  # linux/prctl.h
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True, slots=True)
class Result:
    """A command that has ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The one object on stdout."""
        value = json.loads(self.out)
        assert isinstance(value, dict)
        return value


class Running:
    """The command in a process of its own, in a session of its own; context manager that ends with nobody left.

    Args:
        argv: verb and arguments.
        python: arguments of the interpreter in the place of ``-m parallel_fixedram``.
        fresh: whether the interpreter has imported nothing yet, which takes much longer; it is also fresh where
            ``preexec_fn`` or a variable that it looks at makes it another one.
        options: for Popen; stdout and stderr are pipes unless told otherwise. Bytes that are not UTF-8 are as in
            ``os.fsdecode``.
    """

    def __init__(
        self,
        *argv: str | Path,
        python: Sequence[str] = ("-m", "parallel_fixedram"),
        fresh: bool = False,
        **options: Any,
    ) -> None:
        env = prepared.environment() | options.pop("env", {})
        options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
        words = [*map(str, argv)]
        self.process: subprocess.Popen[str] | prepared.Process
        if fresh or "preexec_fn" in options or not prepared.suits(env):
            self.process = subprocess.Popen(
                [sys.executable, *python, *words],
                env=env,
                text=True,
                errors="surrogateescape",
                start_new_session=True,
                **options,
            )
        else:
            streams = [options.pop(name) for name in ("stdin", "stdout", "stderr")]
            self.process = prepared.Process(python, words, streams, env, **options)
        self.pid = self.process.pid
        self._pidfd = os.pidfd_open(self.pid)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for pid in self.family():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.communicate()
        os.close(self._pidfd)

    def family(self) -> list[int]:
        """Processes of the session that are not dead, the command itself first."""
        found = []
        for name in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{name}/stat").read_bytes().rpartition(b") ")[2].split()
                if int(fields[3]) == self.pid and fields[0] not in (b"Z", b"X"):
                    found.append(int(name))
        return sorted(found, key=lambda pid: (pid != self.pid, pid))

    def until(self, happened: Callable[[], object]) -> None:
        """Return as soon as that is so; the command has to be alive all the time."""
        deadline = time.monotonic() + SECONDS
        while not happened():
            assert not select.select([self._pidfd], [], [], 0)[0], f"ended too early: {self.process.communicate()}"
            assert time.monotonic() < deadline

    def freeze(self) -> None:
        """Stop the command itself, not its children, and return when it stands still."""
        os.kill(self.pid, signal.SIGSTOP)
        how = os.waitid(os.P_PIDFD, self._pidfd, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        assert how is not None
        assert how.si_code == os.CLD_STOPPED, "ended too early"

    def send(self, signum: int) -> None:
        """Send a signal to the command, which goes on if it was frozen."""
        os.kill(self.pid, signum)
        os.kill(self.pid, signal.SIGCONT)

    def finish(self) -> Result:
        """Wait for the end; nobody may be left, and nothing in /dev/shm."""
        out, err = self.process.communicate(timeout=SECONDS)
        killed = self.process.returncode == -signal.SIGKILL  # its children hear of it when it is gone already
        deadline = time.monotonic() + GONE_SECONDS * killed
        while self.family() and time.monotonic() < deadline:
            os.sched_yield()
        assert self.family() == []
        assert [name for name in os.listdir("/dev/shm") if name.endswith(f"-{self.pid}")] == []
        return Result(self.process.returncode, out or "", err or "")


_HOLD = """
import os, sys
from parallel_fixedram.image import compare
from parallel_fixedram.image import restore
from parallel_fixedram.image import verify
from parallel_fixedram.engine.pages import round_job
from parallel_fixedram.cli import main, progress
progress.PROGRESS_AFTER_SECONDS = {bar_after}
def hold(job):
    run = job.run
    def held(self, shard):
        os.write({ready}, b".")
        os.read({go}, 1)  # until the other end is closed
        return run(self, shard)
    job.run = held
for job in (compare.CompareJob, restore.RestoreJob, verify.DigestCheckJob, round_job.RoundJob):
    hold(job)
sys.exit(main.main())
"""


class HeldRunning(Running):
    """The command, held at some point of its work until it is released.

    Args:
        argv: verb and arguments.
        hold: a program that runs the command; where it is to be held it writes a byte to the descriptor ``{ready}`` and
            reads one from ``{go}``, which is not there until it is released.
        values: what else is to be filled in there.
        options: as for Running.
    """

    def __init__(self, *argv: str | Path, hold: str, values: Mapping[str, object], **options: Any) -> None:
        self._ready, ready = os.pipe()
        go, self._go = os.pipe()
        try:
            python = ("-c", hold.format(ready=ready, go=go, **values))
            super().__init__(*argv, python=python, pass_fds=(ready, go), **options)
        finally:
            os.close(ready)
            os.close(go)

    def __enter__(self) -> Self:
        super().__enter__()
        assert os.read(self._ready, 1) == b".", f"ended too early: {self.process.communicate()}"
        return self

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        os.close(self._ready)
        self.release()

    def release(self) -> None:
        """Let it go on."""
        if self._go >= 0:
            os.close(self._go)
            self._go = -1


class Held(HeldRunning):
    """The command, held in the middle of its work: the workers have their first shards and do nothing about them.

    Args:
        argv: verb and arguments.
        bar_after: seconds after which there is a progress bar on a terminal.
        options: as for Running.
    """

    def __init__(self, *argv: str | Path, bar_after: float = 1.0, **options: Any) -> None:
        super().__init__(*argv, hold=_HOLD, values={"bar_after": bar_after}, **options)

    def one_shard(self) -> None:
        """Let the workers do one shard, and return when the next one is held."""
        os.write(self._go, b".")
        assert os.read(self._ready, 1) == b"."


def run(*argv: str | Path, **options: Any) -> Result:
    """Run the command to its end; arguments as for Running."""
    with Running(*argv, **options) as running:
        return running.finish()


def call(*argv: str | Path) -> Result:
    """Run the command in this process: much faster."""
    handlers = {signum: signal.getsignal(signum) for signum in _SIGNALS}
    before = children()
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code = main([*map(str, argv)])
            except SystemExit as stop:
                code = int(stop.code or 0)
    finally:
        for signum, handler in handlers.items():
            signal.signal(signum, handler)
    assert children() == before
    return Result(code, out.getvalue(), err.getvalue())


def without_proc(*argv: str | Path) -> Result:
    """Run the command where no /proc is mounted; skips the test where that cannot be."""
    hide = ["sh", "-c", 'mount -t tmpfs none /proc && exec "$@"', "sh"]
    command = [*with_own_mounts(), *hide, sys.executable, "-P", "-m", "parallel_fixedram", *map(str, argv)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    return Result(ran.returncode, ran.stdout, ran.stderr)


def done(result: Result) -> Result:
    """The result of a command that did what it was asked."""
    assert (result.code, "error" in result.err, "Traceback" in result.err) == (0, False, False), result
    return result


def refused(result: Result, code: int, message: str, hint: str | None = None) -> None:
    """Hold a failure against its promise: exit code, one line, at most one line of hint, nothing on stdout.

    With ``--json`` the one line is an object with the same facts.

    Args:
        result: of the command.
        code: expected exit code.
        message: what the line has to contain, or end with if this ends with a newline.
        hint: what the hint has to contain; empty for no hint, None for either.
    """
    lines = result.err.splitlines(keepends=True)
    assert result.code == code, result
    assert result.out == ""
    assert 1 <= len(lines) <= 2, lines
    if lines[0].startswith("{"):
        lines = _as_text(result, code)
    assert lines[0].startswith("parallel-fixedram: error: ")
    assert lines[0].endswith("\n")
    assert message in lines[0], result
    assert len(lines) == 1 or lines[1].startswith("parallel-fixedram: hint: ")
    if hint is not None:
        assert len(lines) == 1 + bool(hint)
        assert hint in lines[-1]


def _as_text(result: Result, code: int) -> list[str]:
    """The lines that an error is without ``--json``."""
    error = json.loads(result.err)
    assert list(error) == ["schema", "version", "code", "message", "hint"]
    assert (error["schema"], error["version"], error["code"]) == ("parallel_fixedram.error", 1, code)
    lines = [f"parallel-fixedram: error: {error['message']}\n"]
    return [*lines, f"parallel-fixedram: hint: {error['hint']}\n"] if error["hint"] else lines


def tree(folder: Path) -> dict[str, tuple[int, int, str]]:
    """Everything in a folder: name -> inode, mode, contents (hashed)."""
    found = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        contents = hashlib.sha1(path.read_bytes()).hexdigest() if stat.S_ISREG(status.st_mode) else ""
        found[str(path.relative_to(folder))] = (status.st_ino, status.st_mode, contents)
    return found


@contextlib.contextmanager
def unchanged(folder: Path) -> Iterator[None]:
    """Nothing in the folder comes, goes or changes."""
    before = tree(folder)
    yield
    assert tree(folder) == before


@contextlib.contextmanager
def untouched(folder: Path) -> Iterator[None]:
    """Not even for a moment is there another name in the folder."""
    before = folder.stat().st_mtime_ns
    with unchanged(folder):
        yield
    assert folder.stat().st_mtime_ns == before


@contextlib.contextmanager
def tmpfs(folder: Path, options: str) -> Iterator[Path]:
    """A small file system on ``folder``; skips the test where mounting is not permitted."""
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, text=True, check=False
    )
    if made.returncode:
        pytest.skip(f"mounting is not permitted here: {made.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def remount(folder: Path, options: str) -> None:
    """Change a mounted file system's options."""
    subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True)


def without_override() -> None:
    """For ``preexec_fn``: file permissions bind root too."""
    if os.geteuid() == 0:
        libc = ctypes.CDLL(None, use_errno=True)
        for capability in (_CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH):
            if libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0):
                raise OSError(ctypes.get_errno(), "prctl")


def lose_override() -> None:
    """For ``prepare`` of a fork: file permissions bind root too from now on."""
    libc = ctypes.CDLL(None, use_errno=True)
    header, sets = struct.pack("Ii", _CAPABILITY_VERSION_3, 0), ctypes.create_string_buffer(24)
    if libc.capget(header, sets):
        raise OSError(ctypes.get_errno(), "capget")
    effective, *others = struct.unpack("6I", sets)
    effective &= ~(1 << _CAP_DAC_OVERRIDE | 1 << _CAP_DAC_READ_SEARCH)
    if libc.capset(header, struct.pack("6I", effective, *others)):
        raise OSError(ctypes.get_errno(), "capset")


def dying_with_us() -> Callable[[], None]:
    """For ``preexec_fn``: not even a killed test run leaves the process behind."""
    return partial(linux.die_with_parent, signal.SIGKILL, os.getpid())


def file_size_limit(size: int) -> Callable[[], None]:
    """For ``preexec_fn``: no file may grow beyond ``size`` bytes."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def part_of(path: Path) -> Path:
    """What a file is called while it is being written."""
    return path.with_name(f".{path.name}.part")
