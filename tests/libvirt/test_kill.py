"""Whoever dies while a domain is saved: it runs on, libvirt says so, and the next save is a save."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.examples import unless_thorough
from support.faults import Forked, before, behind
from support.libvirt_domains import Domain, virsh
from support.qemu_linux import LinuxGuest

from parallel_fixedram.core.errors import MachineError
from parallel_fixedram.engine.capture.pause import Pause
from parallel_fixedram.host import linux as system
from parallel_fixedram.host.files.channel import FileChannel
from parallel_fixedram.host.processes.guardian import Guardian
from parallel_fixedram.image.draft import Draft
from parallel_fixedram.machines.libvirt.bridge import Bridge
from parallel_fixedram.machines.qemu.monitor import Monitor
from parallel_fixedram.verbs.open import open_libvirt
from parallel_fixedram.verbs.verify import verify

pytestmark = pytest.mark.usefixtures("library")

STEPS = {
    "connected": behind(Bridge, "__init__"),
    "guardian begun": behind(Guardian, "__enter__"),
    "armed": behind(Guardian, "arm"),
    "stopped": behind(Monitor, "execute", "stop"),
    "device state there": behind(Monitor, "execute", "xen-save-devices-state"),
    "about to let it go on": before(Monitor, "execute", "cont"),
    "let go on": behind(Monitor, "execute", "cont"),
    "file being finished": before(Draft, "finish"),
    "renamed": behind(system, "rename_new"),
}
FEWER = unless_thorough(["connected", "armed", "stopped", "device state there", "let go on", "renamed"], STEPS)


@pytest.fixture(scope="module")
def domain(tmp_path_factory: pytest.TempPathFactory, linux: LinuxGuest) -> Iterator[Domain]:
    """One for all of them: whatever happened to the saves before, it runs."""
    with Domain(tmp_path_factory.mktemp("domain"), linux) as domain:
        domain.start()
        domain.tick()
        yield domain


def check_goes_on(domain: Domain) -> None:
    """It ticks on by itself, and libvirt knows of it, and of no job."""
    domain.serial.take()
    domain.tick()
    assert domain.state == "running"
    assert "None" in virsh("domjobinfo", domain.name)


def descriptor_sets(domain: Domain) -> list[object]:
    answer = json.loads(virsh("qemu-monitor-command", domain.name, '{"execute": "query-fdsets"}'))
    sets: list[object] = answer["return"]
    return sets


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("step", FEWER)
def test_killed_at_any_step_the_domain_runs_on_and_nothing_of_ours_is_left(
    domain: Domain, tmp_path: Path, step: str
) -> None:
    argv = ["save", tmp_path / "vm", "--libvirt", domain.name, "--capture", "compare"]
    with Forked(*argv, moment=STEPS[step], act=die) as running:
        assert running.finish().code == -signal.SIGKILL
        check_goes_on(domain)
        assert running.left() == []
    assert descriptor_sets(domain) == []


def test_a_bridge_that_is_killed_while_the_domain_stands_still_costs_the_save_and_not_the_domain(
    domain: Domain, tmp_path: Path
) -> None:
    def kill_bridge(*_: object) -> None:
        os.kill(bridges[0], signal.SIGKILL)

    def note_bridge() -> None:
        opened = Bridge._opened

        def noting(bridge: Bridge) -> object:
            bridges.append(bridge._pid)
            return opened(bridge)

        Bridge._opened = noting  # type: ignore[assignment,method-assign]

    bridges: list[int] = []
    argv = ["save", tmp_path / "vm", "--libvirt", domain.name, "--capture", "compare"]
    moment = behind(Monitor, "execute", "stop")
    with Forked(*argv, moment=moment, act=kill_bridge, prepare=note_bridge) as running:
        result = running.finish()
        assert result.code == MachineError.exit_code, result
        assert f"domain '{domain.name}'" in result.err
        check_goes_on(domain)
        assert running.left() == []
    assert os.listdir(tmp_path) == []


def test_a_save_that_fails_lets_a_domain_go_on_that_was_to_be_ended(domain: Domain, tmp_path: Path) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    argv = ["save", tmp_path / "vm", "--libvirt", domain.name, "--stop"]
    with Forked(*argv, moment=before(FileChannel, "sync"), act=fail) as running:
        assert running.finish().code not in (0, -signal.SIGKILL)
        check_goes_on(domain)
    assert os.listdir(tmp_path) == []


def test_killed_between_the_instant_and_its_end_a_domain_that_was_to_be_ended_goes_on(
    domain: Domain, tmp_path: Path
) -> None:
    argv = ["save", tmp_path / "vm", "--libvirt", domain.name, "--stop"]
    with Forked(*argv, moment=behind(Pause, "__exit__"), act=die) as running:
        assert running.finish().code == -signal.SIGKILL
        check_goes_on(domain)
        assert running.left() == []


def test_with_stop_the_domain_stands_still_from_the_instant_on_and_is_ended(domain: Domain, tmp_path: Path) -> None:
    def look(*_: object) -> None:
        states.write_text(domain.state)

    states, file = tmp_path / "states", tmp_path / "vm"
    with Forked("save", file, "--libvirt", domain.name, "--stop", moment=before(Draft, "publish"), act=look) as running:
        assert running.finish().code == 0
    assert states.read_text() == "paused"
    assert not domain.alive
    assert verify(str(file)).ok
    virsh("restore", file)
    check_goes_on(domain)


def test_what_others_do_through_libvirt_meanwhile_is_noticed_and_the_instant_taken_again(
    domain: Domain, tmp_path: Path
) -> None:
    argv = ["save", tmp_path / "vm", "--libvirt", domain.name, "--capture", "compare", "--json"]
    moment = behind(Monitor, "execute", "xen-save-devices-state")
    with Forked(*argv, moment=moment, act=lambda *_: virsh("resume", domain.name)) as running:
        result = running.finish()
    assert result.code == 0, result
    notes = json.loads(result.out)["notes"]
    assert [note for note in notes if note.startswith("somebody let the guest go on while it was being saved")]
    assert verify(str(tmp_path / "vm")).ok
    check_goes_on(domain)


def test_another_guardian_than_a_ready_one_does_not_let_a_domain_be_stopped(
    domain: Domain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("parallel_fixedram.machines.libvirt.keeper.Keeper.prepare", die)
    with open_libvirt(domain.name) as machine, pytest.raises(Exception, match="looks after the guest is not ready"):
        machine.get_ready()
    check_goes_on(domain)
