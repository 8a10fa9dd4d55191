"""Folders for temporary files.

::

    FOLDER/parallel-fixedram-XXXXXXXX/             mode 0700
                                      .temporary   locked while a command needs the folder; removed last
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace

from parallel_fixedram.boot.run_folder import PREFIX, FleetFolder
from parallel_fixedram.core.errors import HostError, unopened
from parallel_fixedram.core.reports.clean import Kind, Leftover
from parallel_fixedram.host import linux
from parallel_fixedram.host.files.part import try_lock

_NAME = re.compile(rf"{PREFIX}[a-z0-9_]{{8}}")
_MARK = ".temporary"
_NEW_SECONDS = 60.0
"""An empty folder that is newer than this may be one that is being made, without mark or lock yet."""

_AT_WORK = "a command is working with it"


@contextlib.contextmanager
def temporary_folder(where: str | None) -> Iterator[str]:
    """A new folder with mode 0700, removed with all its contents at the end of the block.

    Args:
        where: the folder to make it in; None for the system's folder for temporary files.

    Raises:
        NoFileError: there is no such folder.
        HostError: no folder can be made there.
    """
    try:
        made = tempfile.TemporaryDirectory(prefix=PREFIX, dir=where)
    except OSError as error:
        if where is None:
            raise HostError.from_os("cannot make a folder for temporary files", error) from error
        raise unopened(f"cannot make a folder in {where!r}", error) from error
    with made as path, _marked(path):
        yield path


def left_temporary(path: str, *, remove: bool) -> Iterator[Leftover]:
    """A finding for each such folder of this user in a folder.

    Args:
        path: the folder.
        remove: whether to remove those that no command needs.

    Raises:
        OSError: the folder cannot be read.
    """
    for name in sorted(os.listdir(path)):
        if name.startswith(PREFIX) and (found := _found(os.path.join(path, name), remove=remove)):
            yield found


def _found(path: str, *, remove: bool) -> Leftover | None:
    """The finding for a folder; None if it is something else, or gone."""
    found = Leftover(path=path, kind=Kind.TEMPORARY, what="", held=False, removed=False, why_not="")
    try:
        status = os.lstat(path)
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
            return None
        entries = sorted(os.listdir(path))
        if _MARK in entries:
            what = f"temporary files of a command ({len(entries) - 1} of them)"
            return _marked_one(replace(found, what=what), remove=remove)
        if entries or stat.S_IMODE(status.st_mode) != 0o700 or not _NAME.fullmatch(os.path.basename(path)):
            return None
        found = replace(found, what="an empty folder such as commands make")
        if time.time() - status.st_mtime < _NEW_SECONDS:
            return replace(found, held=True, why_not="it is new: a command may be about to use it")
        return _empty_one(found, remove=remove)
    except FileNotFoundError:
        return None
    except OSError as error:
        return replace(found, why_not=HostError.from_os("cannot be removed", error).message)


def _empty_one(found: Leftover, *, remove: bool) -> Leftover:
    fleet = FleetFolder(found.path)  # it may be one that a command is making for its guests
    if not fleet.look():
        return replace(found, held=True, why_not=_AT_WORK)
    try:
        if remove:
            os.rmdir(found.path)
        return replace(found, removed=remove)
    finally:
        fleet.let_go()


def _marked_one(found: Leftover, *, remove: bool) -> Leftover:
    fd = os.open(os.path.join(found.path, _MARK), os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with linux.closing(fd):
        if not try_lock(fd):
            return replace(found, held=True, why_not=_AT_WORK)
        if remove:
            _empty(found.path)
            os.unlink(os.path.join(found.path, _MARK))
            os.rmdir(found.path)
        return replace(found, removed=remove)


@contextlib.contextmanager
def _marked(path: str) -> Iterator[None]:
    """Mark the folder as temporary, and lock the mark so that others see it is in use."""
    try:
        fd = os.open(os.path.join(path, _MARK), os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise HostError.from_os(f"cannot make a file in {path!r}", error) from error
    try:
        _lock(fd, path)
        yield
    finally:
        with contextlib.suppress(OSError):  # removing the folder next will report why this failed
            _empty(path)
        linux.close(fd)


def _lock(fd: int, path: str) -> None:
    try:
        if try_lock(fd):
            return
    except OSError as error:
        raise HostError.from_os(f"cannot lock {path!r}", error) from error
    raise HostError(f"somebody else is removing {path!r}")


def _empty(path: str) -> None:
    """Remove everything but the mark, which shows what the rest is.

    Raises:
        OSError: something cannot be removed.
    """
    for each in os.scandir(path):
        if each.is_dir(follow_symlinks=False):
            shutil.rmtree(each.path)
        elif each.name != _MARK:
            os.unlink(each.path)
