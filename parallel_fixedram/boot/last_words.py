"""What a QEMU printed last, as one line for a message; and how to end all processes that still use a run folder.

QEMU's own lines begin with its name. Everything else in a log comes from a wrapper or, with ``-nographic``, from the
guest's serial line, and is quoted only if QEMU has ended and left nothing better.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
from collections.abc import Iterator

from parallel_fixedram.host import linux
from parallel_fixedram.host.processes import forked

MAX_LINES = 5
"""Most lines that are quoted; usually there are two."""
MAX_CHARACTERS = 500

_READ_BYTES = 1 << 16
# the level comes after the option or the line of a file that it is about (QEMU util/error-report.c); or it is GLib's
_NO_REASON = re.compile(r"(?:--?[a-z].*?: |\S+:\d+: )?(?:warning|info): |.*-(?:WARNING|Message|INFO|DEBUG) \*\*: ")
_ENDING_SECONDS = 1.0
_MOST_ROUNDS = 8


def last_words(log_path: str, program: str, *, ended: bool) -> str:
    """The last lines of a log as one, without warnings; empty if there are none.

    Args:
        log_path: the log.
        program: what was run: QEMU, or a wrapper.
        ended: whether QEMU has ended, so that any line will do.
    """
    try:
        with open(log_path, "rb") as log:
            log.seek(max(0, os.fstat(log.fileno()).st_size - _READ_BYTES))
            lines = log.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    # with -msg timestamp=on the time comes before the name; after it may come a place in a -readconfig file
    named = re.compile(rf"(?:\d\S*Z )?(?:{re.escape(os.path.basename(program))}|qemu-\S+?):(?: |(?=\S+:\d+: ))(.*)")
    own = [match[1].strip() for line in lines if (match := named.match(line.strip()))]
    chosen = own or ([line.strip() for line in lines if line.strip()] if ended else [])
    chosen = [line for line in chosen if not _NO_REASON.match(line)][-MAX_LINES:]
    text = "".join(each if each.isprintable() else "?" for each in "; ".join(chosen))
    return text if len(text) <= MAX_CHARACTERS else f"...{text[-MAX_CHARACTERS:]}"


def how_it_ended(pid: int) -> str:
    """How a child ended, as the predicate of a sentence; empty if it is alive. It is not reaped."""
    try:
        found = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:  # somebody waits for all children, or SIGCHLD is ignored
        return "has ended"
    if found is None:
        return ""
    if found.si_code == os.CLD_EXITED:
        return f"exited with code {found.si_status}"
    return f"was killed by {signal.Signals(found.si_status).name}"


def end_all(folder: str) -> None:
    """Kill all processes, wrappers included, that print to a log in a run folder, or have a socket bound there.

    This finds even a QEMU that was only just started, or that a wrapper has put into a session of its own. It uses no
    thread, lock or other state of ours, so that a guardian may call it.
    """
    bound, folder = os.path.join(os.path.abspath(folder), ""), os.path.join(os.path.realpath(folder), "")
    for _ in range(_MOST_ROUNDS):  # a process may have started another before it was killed
        sockets = _sockets_in((bound, folder))
        pids = [int(name) for name in os.listdir("/proc") if name.isdecimal() and int(name) != os.getpid()]
        if not [pid for pid in pids if _end(pid, folder, sockets)]:
            return


def _end(pid: int, folder: str, sockets: set[str]) -> bool:
    """Kill a process if it uses the folder; returns whether it did."""
    with contextlib.suppress(OSError):  # it is gone, or somebody else's
        pidfd = os.pidfd_open(pid)  # before looking, so that it cannot come to mean another process
        with linux.closing(pidfd):
            if any((fd in ("1", "2") and to.startswith(folder)) or to in sockets for fd, to in _descriptors(pid)):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                forked.has_ended(pidfd, _ENDING_SECONDS)
                return True
    return False


def _descriptors(pid: int) -> Iterator[tuple[str, str]]:
    """What a process has open, as (number, name)."""
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            yield fd, os.readlink(f"/proc/{pid}/fd/{fd}")


def _sockets_in(folders: tuple[str, ...]) -> set[str]:
    """Sockets bound below these folders, by their names in /proc/PID/fd; the clients' ends are not included."""
    with open("/proc/net/unix", encoding="utf-8", errors="surrogateescape") as table:
        lines = [line.rstrip("\n").split(maxsplit=7) for line in table]
    return {f"socket:[{line[6]}]" for line in lines if len(line) == 8 and line[7].startswith(folders)}
