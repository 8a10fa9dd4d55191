"""Clones that are not twins, as a Linux guest sees it: random numbers, who it is, its clock, a command run inside."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
from support.command import report
from support.qemu import Missing, QemuProcess, Ram, missing, require_qemu
from support.qemu_boot import BootFolder, Guest
from support.qemu_linux import LinuxGuest, linux_guest

from parallel_fixedram.boot.clone_identity import Parent, distinct
from parallel_fixedram.boot.command_line import CommandLine

RAM = Ram(256 << 20)
GUID = "11111111-2222-3333-4444-555555555555"
DEVICES = ("-device", f"vmgenid,guid={GUID}", "-device", "virtio-net-pci,id=nic", "-device", "virtio-serial")
WAYS = (
    ("-device", "vmgenid"),
    ("-device", f"guid={GUID},driver=vmgenid,id=vm"),
    ("-device", f'{{"driver": "vmgenid", "guid": "{GUID}"}}'),
    ("-device", "vmgenid,id=vm", "-set", f"device.vm.guid={GUID}"),
    ("-global", f"vmgenid.guid={GUID}", "-device", "vmgenid"),
)
FORK = "crng reseeded due to virtual machine fork"
"""Linux: drivers/char/random.c, add_vmfork_randomness()."""
SAVED_AT = 1_000_000_000
"""The guest's clock when it is saved, seconds."""


def agent_at(path: Path) -> list[str]:
    """A guest agent's port, and its socket."""
    return [
        *("-chardev", f"socket,path={path},server=on,wait=off,id=qga"),
        *("-device", "virtserialport,id=port,chardev=qga,name=org.qemu.guest_agent.0"),
    ]


@pytest.fixture(scope="module")
def linux_with_agent(qemu_binary: str, tmp_path_factory: pytest.TempPathFactory) -> LinuxGuest:
    try:
        return linux_guest(tmp_path_factory.mktemp("linux"), agent=True)
    except Missing as reason:
        missing(str(reason))


@pytest.fixture(scope="module")
def arguments(linux_with_agent: LinuxGuest) -> list[str]:
    """A guest with vmgenid, a network card and a serial port, whose kernel says when it reseeds."""
    return [*linux_with_agent.args(more="virtio loglevel=6", size_mib=1, tick=60), *DEVICES]


@pytest.fixture(scope="module")
def origin(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of that guest, saved while its agent ran."""
    folder = tmp_path_factory.mktemp("origin")
    with QemuProcess(*arguments, *agent_at(folder / "agent"), ram=RAM) as guest:
        guest.wait_serial("ready\r")
        guest.send_serial(f"agent @{SAVED_AT}")
        guest.wait_event("VSERPORT_CHANGE")
        saved = report("save", folder / "vm.mr", "--qmp", guest.monitor_path)
    assert not any("vmgenid" in note for note in saved["notes"])
    return folder / "vm.mr"


def asked(guest: Guest, question: str) -> str:
    """What the guest answers to a command."""
    guest.send_serial(question)
    return guest.wait_serial(rf"{question} (.*)\r")[1]


def mac(guest: Guest) -> Any:
    return guest.qmp("qom-get", path="/machine/peripheral/nic", property="mac")


def test_five_clones_are_five_machines_with_one_mac_address(
    origin: Path, arguments: list[str], boot: BootFolder
) -> None:
    line = boot.line(*arguments, *agent_at(boot.path / "agent-{n}"), ram=RAM, clones=5)
    before = int(time.time())
    started, guests = boot.start("clone", origin, "--count", 5, "--run-in-clone", "hostname clone-{n}", line=line)
    shared, clocks = started["notes"]
    assert shared.startswith("clones have random numbers of their own (vmgenid), and share MAC addresses")
    assert re.fullmatch(r"the clocks of clones were set forward by \d+\.\d s, through their guest agents", clocks)
    ids = [each["id"] for each in started["guests"]]
    streams = []
    for number, (guest, id_) in enumerate(zip(guests, ids, strict=True)):
        guest.wait_serial(FORK)
        streams.append(asked(guest, "random"))
        assert guest.qmp("query-vm-generation-id")["guid"] == id_
        name, _, entry = asked(guest, "who").partition(" ")
        assert name == f"clone-{number}"
        assert json.loads(entry) == {"n": number, "id": id_, "parent": report("inspect", origin)["digest"]}
        assert int(asked(guest, "date")) >= before
    assert len(set(ids)) == len(set(streams)) == 5
    assert len({mac(guest) for guest in guests}) == 1
    for guest in guests[1:]:
        guest.terminate()
    guests[0].qmp("system_reset")
    guests[0].wait_serial("ready\r")
    assert asked(guests[0], "who").partition(" ")[2] == entry.replace(ids[4], ids[0]).replace('"n": 4', '"n": 0')


def test_with_the_same_identity_they_are_twins(origin: Path, arguments: list[str], boot: BootFolder) -> None:
    line = boot.line(*arguments, *agent_at(boot.path / "agent-{n}"), ram=RAM, clones=2)
    started, guests = boot.start("clone", origin, "--count", 2, "--identity", "same", line=line)
    assert [note.partition(":")[0] for note in started["notes"]] == ["clones are the same machine"]
    assert [each["id"] for each in started["guests"]] == ["", ""]
    for guest in guests:
        assert asked(guest, "who") == "(none) "
        assert int(asked(guest, "date")) < SAVED_AT + 3600
        assert guest.qmp("query-vm-generation-id")["guid"] == GUID
        guest.send_serial("random")
        assert FORK not in guest.wait_serial(r"(?s).*random \w+\r")[0]


def test_a_command_that_fails_in_one_clone_ends_all_of_them(
    origin: Path, arguments: list[str], boot: BootFolder
) -> None:
    line = boot.line(*arguments, *agent_at(boot.path / "agent-{n}"), ram=RAM, clones=2)
    command = "test {n} = 0 || { echo no >&2; exit 7; }"
    result = boot.attempt("clone", origin, "--count", 2, "--run-in-clone", command, line=line)
    assert result.code == 4
    assert re.search(r"error: clone 1: guest agent '.*': the command ended with exit code 7: no\n$", result.err)


def test_a_machine_without_fw_cfg_is_cloned_without_an_entry(boot: BootFolder) -> None:
    machine: dict[str, Any] = {"machine": "sbsa-ref", "ram": None}
    memory, path = ("-m", "1G"), boot.path / "vm.mr"
    with QemuProcess(*memory, **machine, target="aarch64", paused=True) as guest:
        report("save", path, "--qmp", guest.monitor_path)
    line = boot.line(*memory, **machine, program=require_qemu("aarch64"))
    started, (clone,) = boot.start("clone", path, "--paused", line=line)
    assert "the machine has no fw_cfg, which would tell clones which one they are" in started["notes"]
    assert clone.status() == "prelaunch"


@pytest.mark.parametrize("way", WAYS)
def test_qemu_takes_the_guid_however_the_device_was_given(qemu_binary: str, way: tuple[str, ...]) -> None:
    made = distinct([CommandLine.parse(["qemu", *way])], Parent(digest=None, has_vmgenid=True, has_fw_cfg=True), "")
    with QemuProcess(*made.lines[0].arguments[1:], paused=True) as guest:
        assert guest.qmp("query-vm-generation-id")["guid"] == made.ids[0]


def test_a_guest_without_vmgenid_is_said_to_have_none_when_saved_and_when_cloned(
    ticker: list[str], boot: BootFolder
) -> None:
    path = boot.path / "vm.mr"
    with QemuProcess(*ticker) as guest:
        guest.wait_serial("A")
        saved = report("save", path, "--qmp", guest.monitor_path)
    assert [note.partition(":")[0] for note in saved["notes"]] == ["the machine has no vmgenid device"]
    started, (clone,) = boot.start("clone", path, line=boot.line(*ticker))
    assert started["notes"][0].startswith("the saved machine has no vmgenid device: clones share random numbers")
    clone.wait_serial("[A-Z]{3}")
