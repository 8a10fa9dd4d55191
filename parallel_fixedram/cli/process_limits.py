"""Limits of this process that a failure may come from, so that a message can name the one to raise."""

from __future__ import annotations

import errno
import resource
from collections.abc import Callable

from parallel_fixedram.core.errors import HostError
from parallel_fixedram.core.units import MIB, format_size

LEAST_ADDRESS_SPACE = 128 * MIB
"""Below this the libraries that a verb needs do not load, and one of them ends the process with an exit code of its
own."""

_LIMITS: dict[int, tuple[int, str, str, Callable[[int], str]]] = {
    errno.ENOMEM: (resource.RLIMIT_AS, "the address space of a process", "v", format_size),
    errno.EFBIG: (resource.RLIMIT_FSIZE, "the length of a file", "f", format_size),
    errno.EMFILE: (resource.RLIMIT_NOFILE, "the number of open files", "n", str),
    errno.EAGAIN: (resource.RLIMIT_NPROC, "the number of processes", "u", str),
}
"""By error number: the limit, of what it is, its option of ulimit, and how it is written."""


def limit_hint(number: int) -> str:
    """The limit that an error number comes from, and how it is called; empty if it comes from none that is set."""
    if number not in _LIMITS:
        return ""
    which, what, option, written = _LIMITS[number]
    soft, _ = resource.getrlimit(which)
    return "" if soft == resource.RLIM_INFINITY else f"{what} is limited to {written(soft)} here (ulimit -{option})"


def require_address_space() -> None:
    """Refuse to begin where the libraries would not load.

    Raises:
        HostError: the address space is limited to less.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY and soft < LEAST_ADDRESS_SPACE:
        raise HostError(
            f"the address space is limited to {format_size(soft)}, a verb needs {format_size(LEAST_ADDRESS_SPACE)}",
            hint="ulimit -v sets this limit",
        )
