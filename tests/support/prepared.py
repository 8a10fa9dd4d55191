"""Interpreters that have imported the command already: a process of its own in a tenth of the time.

::

    test --- Popen, once -----------------> server: imports all of the command, then waits
         --- arguments, descriptors ------> server --- clone(CLONE_PARENT) ---> the command, a child of the test
         <-- its process id --------------- server

What the interpreter does when it starts is not seen here: whoever asks about that starts one of his own. How it ends is
the interpreter's doing here too.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import fcntl
import functools
import gc
import importlib
import json
import os
import pkgutil
import platform
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

_CLONE = {"x86_64": 56, "aarch64": 220}.get(platform.machine(), 0)
_CLONE_PARENT = 0x8000  # linux/sched.h
_LARGEST_REQUEST = 1 << 17
_MATPLOTLIB = "parallel_fixedram.experiments.pictures"
"""Takes longer to import than all the rest, and no command needs it that is started here."""


_SEEN_AT_THE_START = ("PYTHON", "LC_", "LANG")
"""What the variables start with that an interpreter looks at when it starts."""


def environment() -> dict[str, str]:
    """That of this process, but for what has output come out at once, which people have not set."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}


def suits(env: Mapping[str, str]) -> bool:
    """Whether an interpreter that is started in this environment would be like the prepared ones."""
    names = {*env, *_server().env} if _CLONE else set()
    return bool(_CLONE) and not any(
        env.get(name) != _server().env.get(name) for name in names if name.startswith(_SEEN_AT_THE_START)
    )


class Process:
    """The command in a process and a session of its own: of ``Popen``, what tests of commands need.

    Args:
        python: ``-m MODULE`` or ``-c CODE``.
        argv: what comes behind that.
        streams: stdin, stdout and stderr, as for Popen.
        env: all of its environment.
        cwd: its working folder.
        pass_fds: what it inherits under the same numbers.
        text: whether pipes are of text, or of bytes.
    """

    def __init__(
        self,
        python: Sequence[str],
        argv: Sequence[str],
        streams: Sequence[Any],
        env: Mapping[str, str],
        cwd: str | None = None,
        pass_fds: Sequence[int] = (),
        text: bool = True,
    ) -> None:
        request = {"python": python, "argv": argv, "env": env, "cwd": os.fspath(cwd or os.getcwd())}
        request |= {"fds": [0, 1, 2, *pass_fds]}
        mode = {"mode": "", "errors": "surrogateescape"} if text else {"mode": "b"}
        pipes: list[Any] = []
        passed, theirs = [], []
        for number, stream in enumerate(streams):
            pipe, fd = None, -1
            if stream == subprocess.PIPE:
                reader, writer = os.pipe()
                ours, fd = (reader, writer) if number else (writer, reader)
                options = {**mode, "mode": ("r" if number else "w") + mode["mode"]}
                pipe = open(ours, **options)  # type: ignore[call-overload] # noqa: SIM115
                theirs.append(fd)
            elif stream == subprocess.DEVNULL:
                fd = os.open(os.devnull, os.O_RDWR)
                theirs.append(fd)
            else:
                fd = stream if isinstance(stream, int) else stream.fileno()
            passed.append(fd)
            pipes.append(pipe)
        self.stdin, self.stdout, self.stderr = pipes
        self.pid = _server().start(request, [*passed, *pass_fds])
        for fd in theirs:
            os.close(fd)
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """As wait, if it has ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def kill(self) -> None:
        """End it; it is still there to be waited for."""
        os.kill(self.pid, signal.SIGKILL)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end; minus the signal's number if one killed it."""
        if self.returncode is None:
            pidfd = os.pidfd_open(self.pid)
            try:
                with selectors.PollSelector() as selector:
                    selector.register(pidfd, selectors.EVENT_READ)
                    if not selector.select(timeout):
                        raise subprocess.TimeoutExpired("the command", timeout or 0)
            finally:
                os.close(pidfd)
            self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What it printed, and that to its end."""
        deadline = None if timeout is None else time.monotonic() + timeout
        said = {}
        with selectors.PollSelector() as selector:
            for pipe in (self.stdout, self.stderr):
                if pipe is not None and not pipe.closed:
                    said[pipe] = b""
                    selector.register(pipe, selectors.EVENT_READ)
            while selector.get_map():
                left = None if deadline is None else deadline - time.monotonic()
                ready = selector.select(left)
                if not ready:
                    raise subprocess.TimeoutExpired("the command", timeout or 0)
                for key, _ in ready:
                    pipe: Any = key.fileobj
                    piece = os.read(key.fd, 1 << 16)
                    said[pipe] += piece
                    if not piece:
                        selector.unregister(pipe)
        out, err = (self._text(pipe, said) for pipe in (self.stdout, self.stderr))
        self.wait(None if deadline is None else max(deadline - time.monotonic(), 0))
        return out, err

    @staticmethod
    def _text(pipe: TextIO | None, said: Mapping[TextIO, bytes]) -> str:
        """What was read from a pipe, and before that into its buffer."""
        if pipe is None or pipe.closed:
            return ""
        before = pipe.read()  # of what readline() took more than a line
        pipe.close()
        return before + said[pipe].decode(errors="surrogateescape").replace("\r\n", "\n")


class _Server:
    """The interpreter that the others are copies of."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.env = environment()
        with theirs:
            argv = [sys.executable, "-P", __file__, str(theirs.fileno())]
            env = {**self.env, "OPENBLAS_NUM_THREADS": "1"}  # as the command has it: no threads, which forks would end
            self.process = subprocess.Popen(argv, env=env, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        atexit.register(self.close)

    def start(self, request: Mapping[str, Any], fds: Sequence[int]) -> int:
        """Start a command; returns its process id."""
        message = json.dumps(request).encode()
        assert len(message) <= _LARGEST_REQUEST
        socket.send_fds(self._socket, [message], fds)
        answer = self._socket.recv(64)
        assert answer, "the server has ended"
        return int(answer)

    def fileno(self) -> int:
        """The descriptor by which it is asked."""
        return self._socket.fileno()

    def close(self) -> None:
        """End the server, not what it has started."""
        self._socket.close()
        self.process.wait()


@functools.cache
def _server() -> _Server:
    return _Server()


def server() -> int | None:
    """The process id of the server, if there is one already."""
    return _server().process.pid if _server.cache_info().currsize else None


def socket_number() -> int | None:
    """The descriptor by which the server is asked, if there is one already."""
    return _server().fileno() if _server.cache_info().currsize else None


# --- in the server


def _serve(sock: socket.socket) -> dict[str, Any]:
    """Start what is asked for; returns, in the process of a command, what that is."""
    import parallel_fixedram

    for module in pkgutil.walk_packages(parallel_fixedram.__path__, "parallel_fixedram."):
        if not module.name.endswith("__main__") and not module.name.startswith(_MATPLOTLIB):
            importlib.import_module(module.name)
    gc.collect()
    gc.freeze()
    while True:
        message, fds, _, _ = socket.recv_fds(sock, _LARGEST_REQUEST, 32)
        if not message:
            os._exit(0)
        request: dict[str, Any] = json.loads(message)
        pid = _fork_for_parent()
        if pid == 0:
            sock.close()
            _become(request, fds)
            return request
        for fd in fds:
            os.close(fd)
        sock.send(str(pid).encode())


def _fork_for_parent() -> int:
    """Fork a child of our parent."""
    libc, api = ctypes.PyDLL(None, use_errno=True), ctypes.pythonapi  # neither lets go of the interpreter's lock
    api.PyOS_BeforeFork()
    pid = int(libc.syscall(_CLONE, _CLONE_PARENT | signal.SIGCHLD, 0, 0, 0, 0))
    (api.PyOS_AfterFork_Parent if pid else api.PyOS_AfterFork_Child)()
    if pid < 0:
        raise OSError(ctypes.get_errno(), "clone")
    return pid


def _become(request: Mapping[str, Any], fds: Sequence[int]) -> None:
    """Be a process that was just started: its descriptors, session, folder, environment and streams."""
    os.setsid()
    wanted = request["fds"]
    above = [fcntl.fcntl(fd, fcntl.F_DUPFD, max(wanted) + 1) for fd in fds]
    for fd, number in zip(above, wanted, strict=True):
        os.dup2(fd, number)
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in wanted:
            try:
                os.close(int(name))
            except OSError:
                continue  # that of the list itself
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    sys.stdin = open(0, encoding=sys.stdin.encoding, errors=sys.stdin.errors, closefd=False)  # noqa: SIM115 - as Python's
    for name, number in (("stdout", 1), ("stderr", 2)):
        old = getattr(sys, name)
        stream = open(number, "w", encoding=old.encoding, errors=old.errors, closefd=False)  # noqa: SIM115
        if name == "stderr":
            stream.reconfigure(line_buffering=True)
        setattr(sys, name, stream)


def _run(python: Sequence[str], argv: Sequence[str]) -> None:
    """Do what ``python -m MODULE ARGV`` and ``python -c CODE ARGV`` do."""
    kind, what = python
    if kind == "-m":
        sys.argv = [what, *argv]
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        sys.argv = ["-c", *argv]
        exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})


if __name__ == "__main__":
    asked = _serve(socket.socket(fileno=int(sys.argv[1])))
    _run(asked["python"], asked["argv"])
