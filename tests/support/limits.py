"""Work on what strangers made, in a process of its own that may have so much memory and so much time of a processor.

Whatever ends it, the input is known that it was at: ``noted`` says so before each.
"""

from __future__ import annotations

import mmap
import os
import pickle
import resource
import tempfile
import traceback
from collections.abc import Callable
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from support.leftovers import changed, own

T = TypeVar("T")
Noted = Callable[[bytes], None]

MOST_MEMORY = 64 << 20
"""Bytes of address space that a file may cost, on top of what there is."""

_MOST_NOTED = 1 << 16


def limit_memory(more: int = MOST_MEMORY) -> None:
    """Let this process map so many bytes more, and no more."""
    with open("/proc/self/statm") as file:
        mapped = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + more, resource.RLIM_INFINITY))


def limited(work: Callable[[Noted], T], *, seconds: int, memory: int = MOST_MEMORY) -> T:
    """Have work done in a fork of this process; returns what it returns.

    Args:
        work: gets ``noted``.
        seconds: of a processor, after which the kernel ends it.
        memory: bytes of address space on top of what there is.

    Raises:
        AssertionError: it raised, was ended, or left a descriptor, a child or a temporary file; says at which input.
    """
    note = mmap.mmap(-1, _MOST_NOTED)
    result = os.memfd_create("result")

    def noted(given: bytes) -> None:
        note[:4] = len(given).to_bytes(4, "big")
        note[4 : 4 + len(given)] = given

    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            limit_memory(memory)
            resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
            os.write(result, pickle.dumps(_done(work, noted)))
            code = 0
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    pickled = os.pread(result, os.fstat(result).st_size, 0)
    os.close(result)
    given = bytes(note[4 : 4 + int.from_bytes(note[:4], "big")])
    assert code == 0, f"ended with {code} at input {given!r}"
    failure, value = pickle.loads(pickled)
    assert not failure, f"at input {given!r}:\n{failure}"
    return value


def _done(work: Callable[[Noted], T], noted: Noted) -> tuple[str, Any]:
    """What went wrong, and what was returned."""
    before = own()
    with TemporaryDirectory() as folder:
        tempfile.tempdir = folder
        try:
            value = work(noted)
        except BaseException:
            return traceback.format_exc(), None
        there = os.listdir(folder)
        return "; ".join(filter(None, [changed(before, own()), f"left files: {there}" * bool(there)])), value
