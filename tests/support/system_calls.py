"""What comes of something in a process of its own whose system calls the kernel answers otherwise than here."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from support import faults
from support.faults import Decide, Run
from support.puppet import Puppet
from support.qemu_tools import missing
from support.seccomp import install, refusing

FORKING = ("fork", "vfork", "clone", "clone3")
"""The system calls by which processes begin."""


def without(names: tuple[str, ...], error: int, act: Callable[[], Any]) -> Any:
    """What comes of it where the kernel refuses system calls of these names with that errno."""
    with Puppet(act, first=lambda: install(refusing(error, *names))) as process:
        return process.call()


def answered(act: Callable[[], Any], decide: Decide, *, under: str = "/") -> Run:
    """``faults.run``; raises what it raised there."""
    if reason := _why_not():
        missing(reason)
    found = faults.run(act, under=under, decide=decide, seconds=120.0)
    assert not found.hung
    if found.error is not None:
        raise found.error
    return found


@functools.cache
def _why_not() -> str:
    return faults.why_not()
