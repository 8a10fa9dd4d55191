"""Why an existing process cannot be seen from here: namespaces, and what /proc shows of them."""

from __future__ import annotations

import os

from parallel_fixedram.host.processes import forked

_ALL_USERS = ["0", "0", "4294967295"]
"""/proc/self/uid_map of the first user namespace (Linux: man 7 user_namespaces)."""


def why_unseen(pid: int) -> tuple[str, str] | None:
    """The reason, and what to do about it; None if only rights are missing.

    Args:
        pid: the process's number in our pid namespace; 0 if it has none.
    """
    if found := why_proc_is_wrong():
        return found
    if pid == 0:
        where = "it runs in another pid namespace, such as outside of this container"
        return where, "run this where QEMU's process can be seen: on the host, or in QEMU's own namespace"
    if not os.path.exists(f"/proc/{pid}") and forked.lives(pid):
        return "/proc hides the processes of others (hidepid)", "run as QEMU's user, or as root"
    if os.geteuid() == 0 and not _is_first_user_namespace():
        where = "we are root only in a user namespace, without rights over processes outside it"
        return where, "run in QEMU's user namespace, or outside of any"
    return None


def why_proc_is_wrong() -> tuple[str, str] | None:
    """Why /proc does not show our processes, and what to do about it; None if it does."""
    if not os.path.exists("/proc/self"):
        return "no /proc is mounted here", "mount it: mount -t proc proc /proc"
    if os.readlink("/proc/self") != str(os.getpid()):
        return "/proc shows a pid namespace other than ours", "mount ours: mount -t proc proc /proc"
    return None


def _is_first_user_namespace() -> bool:
    try:
        with open("/proc/self/uid_map", encoding="ascii") as file:
            return file.read().split() == _ALL_USERS
    except OSError:
        return True
