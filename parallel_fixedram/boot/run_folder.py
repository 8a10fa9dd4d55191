"""Run folders: where QEMUs that live on have their socket, log and pid, and through which they are found again.

::

    PLACE/parallel-fixedram-NAME          of one command; with --run-dir a link to that folder
    PLACE/parallel-fixedram-NAME/N        of one QEMU
    .../N/qmp    a socket that listens before QEMU starts, so that nobody has to wait for it to appear
    .../N/log    what QEMU prints; stays, alone in its folder, if something went wrong with this QEMU
    .../N/pid    of QEMU itself, not of a wrapper such as timeout, setsid or a shell
    .../N/guest  identity of that process, and its file; written when the guest is handed over
    .../N/disk*  overlays that the guest's disks write to, unless they are somewhere else

While a command works with a folder it holds a lock on it, and nobody else may touch it.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import json
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass

from parallel_fixedram.core.errors import HostError, RequestError, unopened
from parallel_fixedram.core.plain import from_plain
from parallel_fixedram.host import linux
from parallel_fixedram.host.processes.identity import ProcessIdentity

PREFIX = "parallel-fixedram-"

_MOST_RECORD_BYTES = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestRecord:
    """A guest that lives on."""

    process: ProcessIdentity
    file: str
    """What it was started from."""
    since: float
    """When it was handed over, seconds since the epoch."""


class RunFolder:
    """The folder with socket, log and pid of one QEMU.

    Args:
        path: of the folder; it must not exist if it is to be made.
    """

    def __init__(self, path: str) -> None:
        self.path = os.path.abspath(path)
        self.socket = os.path.join(self.path, "qmp")
        self.log = os.path.join(self.path, "log")
        self._pid = os.path.join(self.path, "pid")
        self._record = os.path.join(self.path, "guest")
        self._keep_log = False
        self._files: list[str] = []

    def make(self) -> None:
        """Make it, with mode 0700.

        Raises:
            RequestError: it exists.
            HostError: it cannot be made.
        """
        _make(self.path)

    def add(self, files: Mapping[str, bytes]) -> None:
        """Make files with mode 0600, here or elsewhere, which ``remove`` removes.

        Args:
            files: their contents, by path.

        Raises:
            RequestError: one exists, or there is no such folder.
            HostError: one cannot be written.
        """
        for path, contents in files.items():
            try:
                fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            except FileExistsError as error:
                raise RequestError(f"{path!r} exists") from error
            except OSError as error:
                raise unopened(f"cannot make {path!r}", error) from error
            self._files.append(path)
            try:
                with open(fd, "wb") as file:
                    file.write(contents)
            except OSError as error:
                raise HostError.from_os(f"cannot write {path!r}", error) from error

    def write_pid(self, pid: int) -> None:
        """Note QEMU's process id.

        Raises:
            HostError: it cannot be written.
        """
        _write(self._pid, f"{pid}\n")

    def write_record(self, record: GuestRecord) -> None:
        """Note which guest lives on here.

        Raises:
            HostError: it cannot be written.
        """
        _write(self._record, json.dumps(asdict(record)))

    def record(self) -> GuestRecord | None:
        """Which guest was handed over here; None if there was none.

        Raises:
            HostError: it cannot be read.
        """
        try:
            with open(self._record, encoding="ascii") as file:
                return from_plain(GuestRecord, json.loads(file.read(_MOST_RECORD_BYTES)))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise HostError.from_os(f"cannot read {self._record!r}", error) from error
        except (ValueError, RecursionError) as error:
            raise HostError(f"{self._record!r} is not a record that this command wrote") from error

    def keep_log(self) -> str:
        """Keep the log if it is not empty; returns a sentence that says where it is, or nothing."""
        with contextlib.suppress(OSError):
            self._keep_log = os.path.getsize(self.log) > 0
        return f"what QEMU printed is kept in {self.log!r}" if self._keep_log else ""

    def remove(self) -> None:
        """Remove it, except a log that is to be kept."""
        if not self._keep_log:
            shutil.rmtree(self.path, ignore_errors=True)
        for path in (self.socket, self._pid, *self._files):
            with contextlib.suppress(OSError):
                os.unlink(path)

    def clear(self) -> None:
        """Remove what was made for a QEMU that has ended. If anything else is there, it stays, and so does the
        folder."""
        overlays = glob.glob(os.path.join(glob.escape(self.path), "disk[0-9]*.qcow2"))
        for path in (self.socket, self._pid, self.log, self._record, *overlays):
            with contextlib.suppress(OSError):
                os.unlink(path)
        with contextlib.suppress(OSError):
            os.rmdir(self.path)


class FleetFolder:
    """The folder of one command, with a RunFolder for each of its QEMUs.

    Args:
        path: of the folder; None for a new one in the first place where ``guests`` looks.

    Attributes:
        path: of the folder.
        name: distinguishes its guests from those of other commands: the name of the link or folder in a place where
            ``guests`` looks, or the path if there is none.
    """

    def __init__(self, path: str | None, name: str = "", link: str = "") -> None:
        self.path = new_path() if path is None else os.path.abspath(path)
        self.name = name or self.path
        self._link = link
        self._lock = -1

    def make(self) -> None:
        """Make it and lock it.

        Raises:
            RequestError: it exists.
            HostError: it cannot be made.
        """
        _make(self.path)
        place, name = os.path.split(self.path)
        if place == places()[0] and name.startswith(PREFIX):
            self.name = name.removeprefix(PREFIX)
        else:
            self._make_link(places()[0])
        try:
            self._hold(fcntl.LOCK_EX)
        except HostError:
            self.remove()
            raise

    def look(self) -> bool:
        """Keep commands from beginning to work with it until ``let_go``; returns False if one is working with it
        already.

        Raises:
            HostError: it cannot be opened.
        """
        return self._hold(fcntl.LOCK_SH | fcntl.LOCK_NB)

    def _hold(self, how: int) -> bool:
        try:
            self._lock = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(self._lock, how)
        except BlockingIOError:
            self.let_go()
            return False
        except OSError as error:
            self.let_go()
            raise HostError.from_os(f"cannot lock {self.path!r}", error) from error
        return True

    def let_go(self) -> None:
        """Unlock it."""
        if self._lock >= 0:
            linux.close(self._lock)
            self._lock = -1

    def each(self) -> list[tuple[int, RunFolder]]:
        """The folders of its QEMUs, by number."""
        try:
            numbers = sorted(int(name) for name in os.listdir(self.path) if name.isdecimal())
        except OSError:
            return []
        return [(number, self.of(number)) for number in numbers]

    def of(self, number: int) -> RunFolder:
        """The folder of one QEMU."""
        return RunFolder(os.path.join(self.path, str(number)))

    def remove(self) -> None:
        """Remove it if it is empty, that is, has no log; a link to it is removed in any case."""
        with contextlib.suppress(OSError):
            os.rmdir(self.path)
        self.forget()

    def forget(self) -> None:
        """Remove the link to it."""
        if self._link:
            with contextlib.suppress(OSError):
                os.unlink(self._link)

    def _make_link(self, place: str) -> None:
        name = uuid.uuid4().hex[:8]
        with contextlib.suppress(OSError):  # without a link, its path serves as name
            link = os.path.join(place, PREFIX + name)
            os.symlink(self.path, link)
            self._link, self.name = link, name


def places() -> list[str]:
    """Where run folders are looked for; new ones are made in the first."""
    candidates = [os.environ.get("XDG_RUNTIME_DIR", ""), tempfile.gettempdir(), f"/run/user/{os.geteuid()}", "/tmp"]
    return list(dict.fromkeys(place for place in candidates if os.path.isdir(place)))


def new_path() -> str:
    """A path for a new run folder, with an unused name."""
    return os.path.join(places()[0], f"{PREFIX}{uuid.uuid4().hex[:8]}")


def known_folders() -> Iterator[FleetFolder]:
    """Run folders of this user in all places; dangling links are removed."""
    seen = set()
    for place in places():
        for name in sorted(os.listdir(place)):
            path = os.path.join(place, name)
            if not name.startswith(PREFIX) or not is_ours(path, follow=False):
                continue
            is_link = os.path.islink(path)
            folder = FleetFolder(os.path.realpath(path), name.removeprefix(PREFIX), link=path if is_link else "")
            if folder.path in seen:
                continue
            if is_ours(path) and os.path.isdir(path):
                seen.add(folder.path)
                yield folder
            elif is_link and not os.path.lexists(folder.path):
                folder.forget()


def folder_at(path: str) -> FleetFolder | None:
    """The run folder at a path, if there is one of this user."""
    return FleetFolder(os.path.realpath(path)) if os.path.isdir(path) and is_ours(path) else None


def is_ours(path: str, *, follow: bool = True) -> bool:
    """Whether it belongs to this user; if it is a link, ``follow`` means what it leads to."""
    try:
        return os.stat(path, follow_symlinks=follow).st_uid == os.geteuid()
    except OSError:
        return False


def _make(path: str) -> None:
    try:
        os.mkdir(path, 0o700)
    except FileExistsError as error:
        raise RequestError(f"{path!r} exists") from error
    except OSError as error:
        raise unopened(f"cannot make {path!r}", error) from error


def _write(path: str, text: str) -> None:
    try:
        with open(path, "w", encoding="ascii") as file:
            file.write(text)
    except OSError as error:
        raise HostError.from_os(f"cannot write {path!r}", error) from error


def new_record(process: ProcessIdentity, file: str) -> GuestRecord:
    """A record for a guest that is being handed over now."""
    return GuestRecord(process=process, file=file, since=time.time())
