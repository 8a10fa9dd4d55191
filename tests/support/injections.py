"""Injectors that have something done to them, or to the process, at a certain call of ptrace."""

from __future__ import annotations

import contextlib
import itertools
import mmap
import os
import signal
from collections.abc import Callable, Iterator

import pytest

from parallel_fixedram.core.errors import HostError
from parallel_fixedram.host.injection import ptrace
from parallel_fixedram.host.injection.inject import userfaultfd_of


def kill_us() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@contextlib.contextmanager
def at_call(
    number: int,
    *,
    of: int | None = None,
    but: int | None = None,
    before: Callable[[], object] | None = None,
    after: Callable[[], object] | None = None,
) -> Iterator[Callable[[], bool]]:
    """Something done by the injector right before its so-many-th call of ptrace, or right behind it.

    Args:
        number: which call, from 0 on.
        of: which request to count; default is any.
        but: one not to count: it is made many times in a row.
        before: what is done.
        after: what is done.

    Yields:
        Whether that call was made.
    """
    real, made, reached = ptrace.request, itertools.count(), mmap.mmap(-1, 1)

    def request(*arguments: int) -> int:
        now = of in (None, arguments[0]) and arguments[0] != but and next(made) == number
        reached[0] |= now
        if now and before is not None:
            before()
        result = real(*arguments)
        if now and after is not None:
            after()
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ptrace, "request", request)
        yield lambda: bool(reached[0])


def got(pid: int) -> bool:
    """Whether the userfaultfd was got; if not, because the injector was killed."""
    try:
        userfaultfd_of(pid).close()
    except HostError as error:
        if f"the process that was to stop process {pid} was killed by" not in error.message:
            raise
        return False
    return True
