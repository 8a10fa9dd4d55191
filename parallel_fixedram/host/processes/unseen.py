"""Why a process that is there may not be seen from here: namespaces, and what /proc shows of them."""

from __future__ import annotations

import os

from parallel_fixedram.host.processes import forked

_ALL_USERS = ["0", "0", "4294967295"]
"""/proc/self/uid_map of the first user namespace (Linux: man 7 user_namespaces)."""


def why_unseen(pid: int) -> tuple[str, str] | None:
    """The reason, and what to do about it; None where it is a matter of rights alone.

    Args:
        pid: the process as the kernel names it to us, 0 if it has no number in our pid namespace.
    """
    if found := why_proc_is_wrong():
        return found
    if pid == 0:
        where = "it runs in another pid namespace, such as outside of this container"
        return where, "run this where the process of QEMU is seen: on the host, or in its own namespace"
    if not os.path.exists(f"/proc/{pid}") and forked.lives(pid):
        return "/proc hides the processes of others (hidepid)", "run as the user of QEMU, or as root"
    if os.geteuid() == 0 and not _is_first_user_namespace():
        where = "we are root only of a user namespace, which has no rights over a process outside"
        return where, "run in the user namespace of QEMU, or outside of any"
    return None


def why_proc_is_wrong() -> tuple[str, str] | None:
    """Why nothing that /proc says of processes may be believed, and what to do about it; None if it may."""
    if not os.path.exists("/proc/self"):
        return "no /proc is mounted here", "mount it: mount -t proc proc /proc"
    if os.readlink("/proc/self") != str(os.getpid()):
        return "/proc shows another pid namespace than the one we are in", "mount ours: mount -t proc proc /proc"
    return None


def _is_first_user_namespace() -> bool:
    try:
        with open("/proc/self/uid_map", encoding="ascii") as file:
            return file.read().split() == _ALL_USERS
    except OSError:
        return True
