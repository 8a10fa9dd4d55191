"""File systems to write to: the folder itself, or a fresh one that is gone afterwards.

::

    folder    a new folder in it
    tmpfs     mounted on a new folder in it; without root a new folder in /dev/shm
    xfs, ext4 mkfs in a sparse file in it, mounted through a loop device

When the block is left, also by a signal, everything is unmounted and removed again; if this process is killed, a
guardian does it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator

from parallel_fixedram.core.errors import HostError
from parallel_fixedram.core.units import GIB, align_up, format_size
from parallel_fixedram.experiments import tools
from parallel_fixedram.host.facts import memory_bytes
from parallel_fixedram.host.processes import signals
from parallel_fixedram.host.processes.guardian import Guardian
from parallel_fixedram.verbs.temporary import temporary_folder

MIN_LOOP_BYTES = GIB
"""mkfs.xfs wants 300 MB at least, and a log that is too small is slow."""

_SHARED_MEMORY = "/dev/shm"
MOUNTED = ("xfs", "ext4")
"""Kinds that only root can make."""
_MKFS = {"xfs": ("mkfs.xfs", "-q", "-f"), "ext4": ("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0")}


def why_missing(kind: str) -> str | None:
    """Why there can be no such file system here, as far as that is known without trying; None if nothing is known."""
    try:
        if kind in _MKFS:
            tools.need_root(f"mounting {kind}")
            for program in (_MKFS[kind][0], "mount", "umount", "losetup"):
                tools.find(program)
    except tools.Missing as error:
        return error.message
    return None


@contextlib.contextmanager
def file_system(kind: str, folder: str, room: int) -> Iterator[str]:
    """A new, empty folder on a file system of that kind.

    Args:
        kind: ``folder``, ``tmpfs``, ``xfs`` or ``ext4``.
        folder: where it, or the file behind it, is made.
        room: how many bytes have to fit.

    Raises:
        tools.Missing: there can be none here.
        HostError: it cannot be made.
    """
    with contextlib.ExitStack() as stack:
        if kind == "folder":
            _need("on the disk", room, shutil.disk_usage(folder).free, folder)
            yield _new_folder(stack, folder)
        elif kind == "tmpfs":
            yield _tmpfs(stack, folder, room)
        else:
            yield _loop(stack, kind, folder, room)


def takes_direct_io(folder: str) -> bool:
    """Whether files in the folder can be written bypassing the page cache."""
    name = os.path.join(folder, f".direct-{os.getpid()}")
    try:
        os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_DIRECT | os.O_CLOEXEC, 0o600))
    except OSError as error:
        if error.errno == errno.EINVAL:
            return False
        raise HostError.from_os(f"cannot make a file in {folder!r}", error) from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
    return True


def _new_folder(stack: contextlib.ExitStack, parent: str) -> str:
    """An empty folder in a temporary one, which also has a mark in it."""
    with signals.held():
        folder = os.path.join(stack.enter_context(temporary_folder(parent)), "files")
    try:
        os.mkdir(folder)
    except OSError as error:
        raise HostError.from_os(f"cannot make a folder in {parent!r}", error) from error
    return folder


def _need(what: str, room: int, free: int | None, where: str) -> None:
    if free is not None and room > free:
        raise tools.Missing(f"{where!r}: {format_size(room)} {what} are needed, {format_size(free)} are free")


def _tmpfs(stack: contextlib.ExitStack, folder: str, room: int) -> str:
    _need("of memory", room, memory_bytes("MemAvailable"), "tmpfs")
    if os.geteuid() != 0:
        if not os.path.isdir(_SHARED_MEMORY):
            raise tools.Missing(f"tmpfs needs root, or a folder {_SHARED_MEMORY}")
        return _new_folder(stack, _SHARED_MEMORY)
    return _mount(stack, ["-t", "tmpfs", "-o", f"size={room}", "tmpfs"], _new_folder(stack, folder))


def _loop(stack: contextlib.ExitStack, kind: str, folder: str, room: int) -> str:
    if why := why_missing(kind):
        raise tools.Missing(why)
    point = _new_folder(stack, folder)
    image = os.path.join(os.path.dirname(point), "image")
    size = align_up(max(room * 5 // 4, MIN_LOOP_BYTES), 1 << 20)
    _need("on the disk", room, shutil.disk_usage(folder).free, folder)
    try:
        with open(image, "xb") as file:
            file.truncate(size)
    except OSError as error:
        raise HostError.from_os(f"cannot make {image!r}", error) from error
    program, *options = _MKFS[kind]
    tools.run([tools.find(program), *options, image])
    return _mount(stack, ["-t", kind, "-o", "loop", image], point)


def _mount(stack: contextlib.ExitStack, what: list[str], point: str) -> str:
    guardian = stack.enter_context(Guardian(_unmount(point, lazily=True)))
    guardian.arm()
    stack.callback(guardian.disarm)
    with signals.held():
        try:
            tools.run([tools.find("mount"), *what, point])
        except HostError as error:
            raise tools.Missing(f"cannot mount here: {error.message}") from error
        stack.callback(_unmount(point, lazily=False))
    return point


def _unmount(point: str, *, lazily: bool) -> Callable[[], None]:
    """What unmounts it; ``lazily`` where somebody may have a file open, and then it also removes what was made."""
    umount = tools.find("umount")

    def act() -> None:
        options = ["-l"] if lazily else []
        done = subprocess.run([umount, *options, point], capture_output=True, check=False, stdin=subprocess.DEVNULL)
        if done.returncode and not lazily:
            subprocess.run([umount, "-l", point], capture_output=True, check=False, stdin=subprocess.DEVNULL)
        if lazily and not os.path.ismount(point):
            shutil.rmtree(os.path.dirname(point), ignore_errors=True)

    return act
