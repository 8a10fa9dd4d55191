"""What a host offers for saves in general: features of its kernel, rights of this process, memory."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator

import numpy as np

from parallel_fixedram.core.errors import HostError
from parallel_fixedram.core.reports.doctor import Finding, Verdict, tried
from parallel_fixedram.core.save_options import CAPTURE_MEMORY
from parallel_fixedram.core.units import format_size
from parallel_fixedram.host import linux
from parallel_fixedram.host.facts import memory_bytes
from parallel_fixedram.host.injection.trial import try_to_read, try_to_watch
from parallel_fixedram.host.memory import ksm, memory_limit, userfaultfd
from parallel_fixedram.host.memory.swapped import has_swap
from parallel_fixedram.host.processes import rights
from parallel_fixedram.host.processes.rights import Capability
from parallel_fixedram.machines.qemu.watch import refuse_if_forbidden

_ABSENT = Verdict.ABSENT
_TRACE = "run as root, or with CAP_SYS_PTRACE; in a container: --cap-add SYS_PTRACE"
_DEVICE = f"for everybody: sysctl -w vm.unprivileged_userfaultfd=1; for one: setfacl -m u:USER:rw {userfaultfd.DEVICE}"
_HUGE_PAGES = "/sys/kernel/mm/hugepages"


def examine_host() -> Iterator[Finding]:
    """The findings about this host. None rules out all saves: another capture, or shared memory, can do without."""
    yield tried("userfaultfd", _features, otherwise=_ABSENT, how="a kernel and a sandbox that have userfaultfd(2)")
    yield tried("/dev/userfaultfd", _device, otherwise=_ABSENT)
    yield tried("reading RAM", _reading, otherwise=_ABSENT)
    yield tried("watching RAM", _watching, otherwise=_ABSENT)
    yield tried("seccomp", _seccomp, otherwise=_ABSENT, how="in a container: --security-opt seccomp=unconfined")
    yield tried("CAP_SYS_PTRACE", _capability, otherwise=_ABSENT, how=_TRACE)
    yield tried("yama", _yama, otherwise=_ABSENT, how=f"sysctl -w kernel.yama.ptrace_scope=0, or {_TRACE}")
    yield tried("permission", _permission, otherwise=_ABSENT)
    yield tried("merging (KSM)", _merging, otherwise=_ABSENT)
    yield tried("PAGEMAP_SCAN", _pagemap_scan, otherwise=_ABSENT, how="Linux 6.7 or later")
    yield tried("memory", _memory, otherwise=_ABSENT)
    yield tried("huge pages", _huge_pages, otherwise=_ABSENT, how="sysctl -w vm.nr_hugepages=N")
    yield tried("swap", _swap, otherwise=_ABSENT, how="run as root, or with CAP_SYS_NICE")


def _features() -> str:
    if lacking := userfaultfd.missing_features():
        names = ", ".join(f"UFFD_FEATURE_{each.name}" for each in lacking)
        raise HostError(f"this kernel has no {names}", hint="Linux 6.4 or later")
    return f"Linux {platform.release()} has what a snapshot needs"


def _device() -> str:
    """What a QEMU without CAP_SYS_PTRACE needs."""
    if userfaultfd.is_for_everybody():
        return "not needed: vm.unprivileged_userfaultfd is 1"
    try:
        linux.close(userfaultfd.open_device())
    except HostError as error:
        raise HostError(error.message, hint=_DEVICE) from error
    return "can be opened, and handed to a QEMU that has no CAP_SYS_PTRACE"


def _reading() -> str:
    try_to_read()
    return "private memory of another process can be read (tried on one of ours)"


def _watching() -> str:
    try_to_watch()
    return "another process can be made, by ptrace, to ask for a userfaultfd (tried on one of ours)"


def _seccomp() -> str:
    if rights.status(os.getpid()).get("Seccomp", "0") != "0":
        raise HostError("a QEMU started here would inherit a filter that cannot be read: no snapshot of it is possible")
    return "this process has no filter"


def _capability() -> str:
    if not rights.has(os.getpid(), Capability.SYS_PTRACE):
        raise HostError("only a QEMU of this user that has no more rights than this process can be saved")
    return "a QEMU of any user can be saved"


def _yama() -> str:
    scope = rights.ptrace_scope()
    if not rights.may_trace_others():
        raise HostError(
            f"kernel.yama.ptrace_scope is {scope}: only shared memory of a QEMU can be read, and no snapshot"
        )
    return f"kernel.yama.ptrace_scope is {scope}" if scope else "lets processes of one user trace each other"


def _permission() -> str:
    refuse_if_forbidden()
    return "asking QEMU's process for a userfaultfd is not forbidden"


def _merging() -> str:
    if ksm.is_merging():
        raise HostError(
            "this host merges pages of guests, which removes their write protection",
            hint="start QEMU with -machine mem-merge=off, or stop KSM: echo 0 > /sys/kernel/mm/ksm/run",
        )
    return "this host does not merge pages"


def _pagemap_scan() -> str:
    fd = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    try:
        linux.pagemap_scan(fd, 0, 1 << 20, np.empty((1, 3), np.uint64))
    except OSError as error:
        what = "page tables are read entry by entry, and pages that were only read count as data"
        raise HostError.from_os(what, error) from error
    finally:
        linux.close(fd)
    return "tells which pages have memory of their own"


def _memory() -> str:
    available, room = memory_bytes("MemAvailable"), memory_limit.memory_until_killed(os.getpid())
    known = [each for each in (available, room) if each is not None]
    text = f"{format_size(available)} available" if available is not None else "available memory is not known"
    text += ", no control group limits it" if room is None else f", {format_size(room)} to this control group"
    if known and min(known) < CAPTURE_MEMORY:
        needed = f"copies of a snapshot may take {format_size(CAPTURE_MEMORY)}"
        raise HostError(f"{text}; {needed}", hint="a smaller --capture-memory, or a larger memory.max")
    return text


def _huge_pages() -> str:
    try:
        folders = sorted(os.listdir(_HUGE_PAGES), key=lambda name: (len(name), name))
    except OSError as error:
        raise HostError("this kernel has none for guests to be restored onto", hint="CONFIG_HUGETLBFS") from error
    told = [(_size(name), *(_number(name, what) for what in ("free", "nr"))) for name in folders]
    text = "; ".join(f"{size}: {free} of {number} free" for size, free, number in told)
    if not any(number for _, _, number in told):
        raise HostError(f"none are reserved for guests to be restored onto ({text})")
    return text


def _size(folder: str) -> str:
    return format_size(int(folder.removeprefix("hugepages-").removesuffix("kB")) << 10)


def _number(folder: str, what: str) -> int:
    with open(os.path.join(_HUGE_PAGES, folder, f"{what}_hugepages"), encoding="ascii") as file:
        return int(file.read())


def _swap() -> str:
    if not has_swap():
        return "this host has none"
    if not rights.has(os.getpid(), Capability.SYS_NICE):
        raise HostError("reading RAM that is in swap brings it in, and it cannot be paged out again from here")
    return "RAM that is in swap goes back there after it was read"
