"""A QEMU that we started says something else than QEMU would, or ends."""

import fcntl
import os
import resource
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.fake_qmp import FakeQmp, returns

from parallel_fixedram.boot import incoming
from parallel_fixedram.boot.launch import Launch
from parallel_fixedram.core.errors import MachineError, RequestError
from parallel_fixedram.machines.qemu.monitor import Monitor

HIGH = 1100
"""Beyond what select(2) takes."""


@pytest.mark.parametrize("answer", [None, [], {}, {"status": 1}])
def test_a_run_state_that_is_none_is_an_error_of_the_machine(tmp_path: Path, answer: object) -> None:
    with (
        FakeQmp(tmp_path / "qmp", {"query-status": returns(answer)}) as server,
        Monitor(str(server.path)) as monitor,
        pytest.raises(MachineError, match="answer to 'query-status' is malformed"),
    ):
        incoming.go_on(monitor, run=True)


@pytest.mark.parametrize(
    ("machine", "hint"),
    [
        ("pc-q35-10.0", "start this QEMU with -M pc-q35-10.0"),
        ("pc-q35-99.9", "this QEMU does not have that machine type: use another version or build"),
    ],
)
def test_the_hint_names_a_machine_type_that_the_qemu_has(machine: str, hint: str) -> None:
    answers = {
        "qom-get": "pc-q35-11.1-machine",
        "query-machines": [{"name": "pc-q35-11.1", "alias": "q35"}, {"name": "pc-q35-10.0"}],
    }
    settings = "send-configuration: on"
    monitor: Any = SimpleNamespace(execute=lambda command, _=None: answers[command], hmp=lambda _: settings)
    with pytest.raises(RequestError) as caught:
        incoming.check_machine(monitor, machine, [])
    assert caught.value.message == f"the file has machine type {machine!r}, this QEMU has 'pc-q35-11.1'"
    assert caught.value.hint == hint


@pytest.fixture
def _many_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard <= HIGH:
        pytest.skip("no more descriptors than select() takes")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, HIGH + 1), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("_many_descriptors")
def test_one_of_very_many_qemus_is_heard_when_it_ends(tmp_path: Path) -> None:
    launch = Launch(["qemu"], str(tmp_path))
    (tmp_path / "log").write_text("qemu: no such machine\n")
    low = os.pidfd_open(ended := os.posix_spawn("/bin/true", ["true"], {}))
    launch.pidfd = fcntl.fcntl(low, fcntl.F_DUPFD_CLOEXEC, HIGH)
    try:
        assert launch.explanation() == "QEMU: no such machine"
    finally:
        os.waitpid(ended, 0)
        os.close(low)
        os.close(launch.pidfd)
