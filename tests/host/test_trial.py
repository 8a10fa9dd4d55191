"""What a snapshot does to QEMU is tried on a process of ours, of which nothing is left."""

from __future__ import annotations

import errno

import pytest
from support.leftovers import children, descriptors
from support.puppet import Puppet
from support.seccomp import KILL, install, only
from support.system_calls import FORKING, without
from support.watched import require_userfaultfd

from parallel_fixedram.core.errors import HostError
from parallel_fixedram.host.injection.trial import try_to_read, try_to_watch

PTRACE, PROCESS_VM_READV, EPERM = 101, 310, 0x50001


def sandboxed(act: object, number: int, action: int) -> str:
    """What is said by a process that has a filter."""

    def attempt() -> str:
        before = children(), descriptors()
        try:
            act()  # type: ignore[operator]
        except HostError as error:
            assert (children(), descriptors()) == before
            return f"{error.message}; {error.hint}"
        return ""

    with Puppet(attempt, first=lambda: install(only(number, action))) as process:
        return str(process.call())


def test_where_everything_is_allowed_it_works_and_leaves_nothing() -> None:
    require_userfaultfd()
    before = children(), descriptors()
    try_to_read()
    try_to_watch()
    assert (children(), descriptors()) == before


@pytest.mark.parametrize("action", [EPERM, KILL])
def test_a_sandbox_without_ptrace_is_noticed_also_one_that_kills_for_it(action: int) -> None:
    require_userfaultfd()
    said = sandboxed(try_to_watch, PTRACE, action)
    assert "operation not permitted" in said or "was killed by SIGSYS" in said
    assert "a process of ours" in said
    assert "--cap-add SYS_PTRACE" in said
    assert sandboxed(try_to_read, PTRACE, action) == ""


def test_a_sandbox_that_lets_nobody_read_others_is_noticed() -> None:
    said = sandboxed(try_to_read, PROCESS_VM_READV, EPERM)
    assert said.startswith("cannot read memory of a process of ours: operation not permitted; a sandbox has to allow")
    require_userfaultfd()
    said = sandboxed(try_to_watch, PROCESS_VM_READV, EPERM)
    assert said.startswith("a process of ours may not be traced: operation not permitted")


def test_a_filter_that_allows_what_is_needed_is_no_obstacle() -> None:
    require_userfaultfd()
    assert sandboxed(try_to_watch, 1000, EPERM) == ""


def test_that_no_process_can_be_started_is_said() -> None:
    with pytest.raises(HostError, match="cannot start a process to try it on: resource temporarily unavailable"):
        without(FORKING, errno.EAGAIN, try_to_read)
