"""Nobody and nothing is left: what there is before and behind a test, a run or a command, and what has come or gone.

::

    own()            of this process: descriptors, userfaultfds among them, and children
    family()         processes that descend from it, whoever their parent is by now
    files()          mounts, /dev/shm, temporary files, run folders
    of_qemu(guest)   its descriptors, the sets that it was handed, mappings whose writes somebody waits for

Others work on the same machine. So all who descend from a process of tests bear its mark, and ``be_alone`` gives it a
/dev/shm, mounts and a folder for temporary files that nobody else sees.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Set
from pathlib import Path
from typing import TYPE_CHECKING

from support import prepared

if TYPE_CHECKING:
    from support.qemu import QemuProcess

Found = Mapping[str, Set[object]]
"""What there is, by kind."""
Look = Callable[[], Found]

SECONDS = 20.0
"""How long who was killed may take to be gone, and QEMU to see that it is; a busy test machine gets so much."""
DEVICE_STATE = "/memfd:device-state"
"""Memory in QEMU that a command which is killed cannot take back."""
_CLONE_NEWNS, _MS_REC, _MS_PRIVATE = 0x20000, 0x4000, 1 << 18
_libc = ctypes.CDLL(None, use_errno=True)
_alone = {"mounts": False, "temporary files": False}
"""What this process has to itself."""
_own_mounts: list[int] = []
"""The process that has them."""


@contextlib.contextmanager
def nothing_left(*looks: Look, seconds: float = SECONDS) -> Iterator[None]:
    """What there is before the block is what there is behind it; for that it may take so many seconds.

    Args:
        looks: where to look: ``own``, ``family`` and ``files``, unless told otherwise.
        seconds: how long.

    Raises:
        AssertionError: something has come, or gone; says what.
    """
    looks = looks or (own, family, files)
    before = [look() for look in looks]
    yield
    end = time.monotonic() + seconds
    while (changes := [changed(then, look()) for then, look in zip(before, looks, strict=True)]) and any(changes):
        assert time.monotonic() < end, "; ".join(filter(None, changes))
        os.sched_yield()


def changed(before: Found, now: Found) -> str:
    """What has come and what has gone; empty if nothing has."""
    come = (f"left {kind}: {sorted(map(str, now[kind] - before[kind]))}" for kind in now if now[kind] - before[kind])
    gone = (f"gone {kind}: {sorted(map(str, before[kind] - now[kind]))}" for kind in now if before[kind] - now[kind])
    return "; ".join((*come, *gone))


def own() -> Found:
    """Of this process; not tests' own server, nor what it is spoken to by."""
    opened = {each for each in descriptors() if each[0] != str(prepared.socket_number())}
    return {"descriptors": opened, "children": children()}


def family() -> Found:
    """Who descends from this process and is not dead, whatever parent, session and name it has given itself."""
    mark, found = f"Max msgqueue size {_mark()} ", set()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            limits = " ".join(Path(f"/proc/{pid}/limits").read_text().split())
            if mark in limits and "State:\tZ" not in Path(f"/proc/{pid}/status").read_text():
                found.add(int(pid))
    return {"processes": found - {os.getpid(), prepared.server()}}


def files() -> Found:
    """What has a name; mounts, /dev/shm and temporary files only where they are nobody else's (``be_alone``).

    A link to a run folder that is gone is nothing: whoever looks for run folders next removes it.
    """
    mounts, temporary = _alone["mounts"], _alone["temporary files"]
    return {
        "mounts": _mounts() if mounts else set(),
        "shared memory": set(os.listdir("/dev/shm")) if mounts else set(),
        "temporary files": set(os.listdir(tempfile.gettempdir())) if temporary else set(),
        "run folders": {each.name for each in Path(os.environ["XDG_RUNTIME_DIR"]).iterdir() if each.exists()},
    }


def _mounts() -> set[object]:
    """What is mounted where; not how, which changes when the power fails."""
    found = set[object]()
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        mount, _, source = line.partition(" - ")
        found.add((*mount.split()[:5], *source.split()[:2]))
    return found


def of_qemu(guest: QemuProcess) -> Found:
    """Of a guest that runs, but for the memory for device state."""
    opened = descriptors(guest.pid)
    state = {int(number) for number, target in opened if target.startswith(DEVICE_STATE)}
    sets = [each for each in guest.qmp("query-fdsets") if not {fd["fd"] for fd in each["fds"]} <= state]
    watched = Path(f"/proc/{guest.pid}/smaps").read_text().count(" uw ")
    return {
        "descriptors of QEMU": {each for each in opened if not each[1].startswith(DEVICE_STATE)},
        "descriptor sets of QEMU": {json.dumps(each) for each in sets},
        "watched mappings of QEMU": {watched} - {0},
    }


def descriptors(pid: int | str = "self") -> set[tuple[str, str]]:
    """Number and target of every open descriptor."""
    found = set()
    for number in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):  # that of the list itself
            found.add((number, os.readlink(f"/proc/{pid}/fd/{number}")))
    return found


def children() -> set[int]:
    """Process ids of all children, those that have ended and were not waited for included; not of tests' own server."""
    lists = (path.read_text() for path in Path("/proc/self/task").glob("*/children"))
    return {int(pid) for each in lists for pid in each.split()} - {prepared.server()}


@functools.cache
def _mark() -> int:
    """A limit that this process has and all inherit whom it starts from now on; nobody here sends such messages."""
    _, most = resource.getrlimit(resource.RLIMIT_MSGQUEUE)
    mark = os.getpid() % (most if most > 0 else 1 << 20)
    resource.setrlimit(resource.RLIMIT_MSGQUEUE, (mark, most))
    return mark


def be_alone() -> Callable[[], None]:
    """Get a /dev/shm, mounts and a folder for temporary files of our own, as far as we may; returns what undoes it.

    Mounts cannot be given back. Without the right to mount nobody here can leave any, and files are not looked for.
    """
    before, folder = tempfile.gettempdir(), tempfile.mkdtemp(prefix="alone-")
    os.environ["TMPDIR"] = tempfile.tempdir = folder
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", before)  # where it keeps what failed

    def undo() -> None:
        _alone.update(dict.fromkeys(_alone, False))
        tempfile.tempdir = os.environ["TMPDIR"] = before
        shutil.rmtree(folder, ignore_errors=True)

    _alone["temporary files"] = True
    _alone["mounts"] = own_mounts() and not _libc.mount(b"shm", b"/dev/shm", b"tmpfs", 0, b"mode=1777")
    return undo


def own_mounts() -> bool:
    """Have mounts of this process be nobody else's, for good; whether that is permitted.

    Another namespace that copies a mount keeps the file system alive, so nobody gets a second one.
    """
    if os.getpid() in _own_mounts:
        return True
    if _libc.unshare(_CLONE_NEWNS) or _libc.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None):
        return False
    _own_mounts[:] = [os.getpid()]
    return True
