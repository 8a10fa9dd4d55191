"""Capabilities, and what Yama makes of them."""

from __future__ import annotations

import os

import pytest
from support.puppet import Puppet

from parallel_fixedram.host.processes.rights import Capability, has, lets_trace, may_trace_others, ptrace_scope, status


@pytest.mark.parametrize(
    ("scope", "capable", "may"),
    [(0, False, True), (1, False, False), (1, True, True), (2, False, False), (2, True, True), (3, True, False)],
)
def test_yama_lets_trace_by_its_scope(scope: int, capable: bool, may: bool) -> None:
    """0: everybody his own; 1: his children; 2: who has CAP_SYS_PTRACE; 3: nobody."""
    assert lets_trace(scope, capable=capable) == may


def test_whether_we_may_trace_is_told_by_the_host() -> None:
    assert may_trace_others() == lets_trace(ptrace_scope(), capable=has(os.getpid(), Capability.SYS_PTRACE))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has rights to lose")
def test_capabilities_are_those_that_a_process_has_now() -> None:
    with Puppet(os.getpid, first=lambda: os.setresuid(65534, 65534, 65534)) as process:
        process.call()
        for capability in Capability:
            assert not has(process.pid, capability)
            bounded = int(status(os.getpid())["CapEff"], 16) >> capability & 1
            assert has(os.getpid(), capability) == bool(bounded)


def test_of_a_process_that_is_gone_nothing_is_known() -> None:
    with pytest.raises(OSError, match="No such file"):
        status(1 << 22 | 1)
