"""What a folder offers for saving a file there, tried out with a file without a name."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import ExitStack

from parallel_fixedram.core.errors import FixedRamError, HostError
from parallel_fixedram.core.reports.doctor import Finding, Verdict, found, missed, tried
from parallel_fixedram.core.units import format_size
from parallel_fixedram.engine.pages.staging import SLOTS
from parallel_fixedram.engine.tuning.calibrate import KEPT_SECONDS, known_for
from parallel_fixedram.host import linux
from parallel_fixedram.host.files.page_cache import dirty_room
from parallel_fixedram.host.files.probe import Probe, probe
from parallel_fixedram.host.files.space import Space
from parallel_fixedram.host.machine_facts import machine_facts

_ABSENT = Verdict.ABSENT
_PAGE = 4096


def examine_folder(folder: str, ram: int, data: int | None) -> Iterator[Finding]:
    """The findings about a folder.

    Args:
        folder: where a file would be saved.
        ram: bytes of RAM to save; 0 if not known.
        data: bytes of its pages that may contain data; None if not known.
    """
    facts = machine_facts(folder)
    options = str(facts["mount_options"]).replace(",", ", ")
    yield found("file system", f"{facts['file_system']} ({options})")
    with ExitStack() as stack:
        try:
            file = stack.enter_context(probe(folder, named=True))
        except FixedRamError as error:
            yield missed("new files", error, how="write permission for the folder, on a file system mounted rw")
            return
        yield found("new files", "can be made")
        yield tried("space", lambda: _space(file, folder, ram, data))
        yield tried("fallocate", lambda: _fallocate(file), otherwise=_ABSENT)
        yield tried("direct I/O", lambda: _direct(file), otherwise=_ABSENT)
        yield tried("reflink", lambda: _reflink(file), otherwise=_ABSENT, how="xfs (mkfs.xfs -m reflink=1) or btrfs")
    yield tried("cost model", lambda: _cost_model(folder), otherwise=_ABSENT, how="plan --calibrate measures it now")
    yield tried("dirty limits", lambda: _dirty_limits(facts["dirty_limits"]), otherwise=_ABSENT)


def _space(file: Probe, folder: str, ram: int, data: int | None) -> str:
    status = os.statvfs(folder)
    free, needed = status.f_frsize * status.f_bavail, max(data or 0, _PAGE)
    text = f"{format_size(free)} free" if status.f_blocks else "free space is not known"
    if ram:
        held = "" if data is None else f", of which {format_size(data)} may be data"
        text += f", for {format_size(ram)} of RAM{held}"
    if status.f_blocks and needed > free:
        try:
            if needed > status.f_frsize * status.f_bfree:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            linux.fallocate(file.channel.fd, linux.FALLOC_FL_KEEP_SIZE, 0, needed)  # from what is reserved for root
        except OSError as error:
            raise HostError.from_os(text, error, hint="make room, or use another FOLDER") from error
    return text


def _fallocate(file: Probe) -> str:
    space = Space(file.channel)
    if not space.reserve(0, _PAGE):
        raise HostError("space cannot be reserved: a full file system is noticed only while pages are written")
    if space.is_in_memory():
        return "files are in memory here: free space is checked instead"
    return "space is reserved before the guest is stopped"


def _direct(file: Probe) -> str:
    with file.direct() as direct:
        if direct is None:
            raise HostError("the file system refuses it: writes go through the page cache")
        if not direct.has_queue(SLOTS):
            hint = "sysctl -w fs.aio-max-nr=1048576, and a sandbox that allows io_setup(2)"
            raise HostError("direct writes are done one at a time: the kernel allows no asynchronous I/O", hint=hint)
    return "files can be written bypassing the page cache, many writes at a time"


def _reflink(file: Probe) -> str:
    if not file.shares_space():
        raise HostError("a copy of a file takes as much space again")
    return "a copy of a file can share its space (cp --reflink)"


def _cost_model(folder: str) -> str:
    age = known_for(folder)
    if age is None:
        raise HostError("not measured yet: the first large save begins with that, one to three seconds")
    return f"measured {_ago(age)} ago, used for {_ago(KEPT_SECONDS - age)} more"


def _ago(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def _dirty_limits(limits: dict[str, int | None]) -> str:
    room = dirty_room()
    set_to = ", ".join(f"vm.{name} {limit}" for name, limit in limits.items() if limit and not name.endswith("secs"))
    if not room:
        raise HostError(f"the page cache makes writers wait at once ({set_to})", hint="wait until it is written back")
    return f"{format_size(room)} can be written into the page cache before writers wait ({set_to})"
