"""The guardian of a domain does not give up while libvirt is away, and asks for nothing that is done."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import pytest

from parallel_fixedram.core.errors import MachineError
from parallel_fixedram.machines.libvirt import keeper
from parallel_fixedram.machines.libvirt.keeper import Keeper
from parallel_fixedram.machines.libvirt.library import Domain

OPERATION_INVALID, NO_DOMAIN, RPC = 55, 42, 39


class LibvirtError(Exception):
    def get_error_code(self) -> int:
        code: int = self.args[0]
        return code


class Libvirt:
    """One whose connections do what they are told to: an error code, or None for a domain that goes on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *connections: list[int | None] | None) -> None:
        self.connections = list(connections)
        self.resumed = 0
        names = {"VIR_ERR_OPERATION_INVALID": OPERATION_INVALID, "VIR_ERR_NO_DOMAIN": NO_DOMAIN}
        module = SimpleNamespace(libvirtError=LibvirtError, **names)
        monkeypatch.setattr(keeper, "library", lambda: module)
        monkeypatch.setattr(keeper, "open_domain", self.open)
        self.now = 0.0
        clock = SimpleNamespace(monotonic=lambda: self.now, sleep=self.sleep)
        monkeypatch.setattr(keeper, "time", clock)

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def open(self, _uri: str, _uuid: str) -> Domain:
        answers = self.connections.pop(0)
        if answers is None:
            raise MachineError("libvirt is away")
        return Domain(connection=None, domain=SimpleNamespace(resume=lambda: self.resume(answers)))

    def resume(self, answers: list[int | None]) -> None:
        if (answer := answers.pop(0) if answers else OPERATION_INVALID) is not None:
            raise LibvirtError(answer)
        self.resumed += 1


@pytest.fixture
def ended() -> Any:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    pidfd = os.pidfd_open(pid)
    yield pidfd
    os.close(pidfd)
    os.waitpid(pid, 0)


@pytest.mark.parametrize(
    ("connections", "resumed"),
    [
        ([[None]], 1),
        ([[OPERATION_INVALID]], 0),
        ([[NO_DOMAIN]], 0),
        ([[RPC], None, None, [None]], 1),
        ([[OPERATION_INVALID, None]], 1),
    ],
    ids=["stands still", "runs", "is gone", "libvirt is restarted", "a request to suspend comes late"],
)
def test_a_domain_goes_on_once_libvirt_does_it(
    monkeypatch: pytest.MonkeyPatch, ended: int, connections: list[list[int | None] | None], resumed: int
) -> None:
    libvirt = Libvirt(monkeypatch, *connections)
    guardian = Keeper("qemu:///system", "uuid", ended)
    guardian.prepare()
    guardian.resume()
    assert libvirt.resumed == resumed
    assert libvirt.now < 2.0


def test_without_libvirt_it_ends_at_last(monkeypatch: pytest.MonkeyPatch, ended: int) -> None:
    libvirt = Libvirt(monkeypatch, [RPC], *[None] * 10_000)
    guardian = Keeper("qemu:///system", "uuid", ended)
    guardian.prepare()
    guardian.resume()
    assert libvirt.resumed == 0
