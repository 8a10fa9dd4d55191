"""Rights of a process: its capabilities, and what Yama lets it do to others of its user."""

from __future__ import annotations

import contextlib
import enum
import os


class Capability(enum.IntEnum):
    """Numbers of linux/capability.h."""

    SYS_PTRACE = 19
    SYS_ADMIN = 21
    SYS_NICE = 23


def status(pid: int) -> dict[str, str]:
    """The fields of /proc/PID/status, by name.

    Raises:
        OSError: the process has ended, or /proc hides it.
    """
    with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
        return {name: value.strip() for name, _, value in (line.partition(":") for line in file)}


def has(pid: int, capability: Capability) -> bool:
    """Whether the process has this capability in effect.

    Raises:
        OSError: as for ``status``.
    """
    return bool(int(status(pid)["CapEff"], 16) >> capability & 1)


def ptrace_scope() -> int:
    """kernel.yama.ptrace_scope (Linux: Documentation/admin-guide/LSM/Yama.rst); 0 without Yama."""
    with contextlib.suppress(OSError, ValueError), open("/proc/sys/kernel/yama/ptrace_scope", "rb") as file:
        return int(file.read())
    return 0


def may_trace_others() -> bool:
    """Whether Yama lets this process trace processes of the same user that are not its children.

    Raises:
        OSError: as for ``status``.
    """
    return lets_trace(ptrace_scope(), capable=has(os.getpid(), Capability.SYS_PTRACE))


def lets_trace(scope: int, *, capable: bool) -> bool:
    """The same for a scope of Yama's, and a process that has CAP_SYS_PTRACE or not."""
    return scope == 0 or (scope in (1, 2) and capable)
