"""Machines of all targets: our file has what QEMU's own of the same machine has, and QEMU loads it; or we refuse.

No guest runs here: processors are never started, so that a machine takes a moment.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from support.cli import call, refused
from support.command import report
from support.qemu import QemuProcess, Ram, require_qemu
from support.qemu_boot import BootFolder
from support.qemu_reader import read_stored, vm_description
from support.qemu_saved import migrate
from support.qemu_tools import require_machine

import parallel_fixedram

MIB = 1 << 20


def null(name: str) -> tuple[str, ...]:
    return "-blockdev", f"null-co,node-name={name},size=1048576,read-zeroes=on"


PCI = (
    *("-netdev", "user,id=n0", "-device", "virtio-net-pci,netdev=n0"),
    *("-netdev", "user,id=n1", "-device", "e1000e,netdev=n1"),
    *(*null("d0"), "-device", "virtio-blk-pci,drive=d0"),
    *(*null("d1"), "-device", "virtio-scsi-pci", "-device", "scsi-hd,drive=d1"),
    *("-device", "virtio-rng-pci", "-device", "virtio-balloon-pci", "-device", "virtio-gpu-pci"),
    *("-device", "virtio-serial-pci", "-device", "virtio-keyboard-pci"),
    *("-device", "qemu-xhci", "-device", "usb-tablet", "-device", "usb-kbd"),
)
PCIE = (*PCI, "-device", "pcie-root-port,id=root")
X86 = ("-smp", "2", "-vga", "std", "-device", "vmgenid", "-device", "i6300esb")
ISA = ("-device", "pvpanic")
MMIO = ("-netdev", "user,id=n0", "-device", "virtio-net-device,netdev=n0", "-device", "virtio-rng-device")
DIMM = ("-object", "memory-backend-ram,id=more,size=64M", "-device", "pc-dimm,memdev=more")


class Case(NamedTuple):
    target: str
    machine: str
    args: tuple[str, ...] = ()


SAVED = {
    "q35": Case("x86_64", "q35", (*X86, *ISA, *PCIE, "-device", "intel-iommu")),
    "q35, 6.2, with a DIMM": Case("x86_64", "pc-q35-6.2", ("-m", "64M,slots=2,maxmem=1G", *DIMM)),
    "pc": Case("x86_64", "pc", (*X86, *ISA, *PCI)),
    "pc, 2.12": Case("x86_64", "pc-i440fx-2.12"),
    "microvm": Case("x86_64", "microvm", MMIO),
    "isapc": Case("x86_64", "isapc"),
    "i386, pc": Case("i386", "pc", (*X86, *ISA, *PCI)),
    "i386, q35": Case("i386", "q35"),
    "aarch64, virt": Case("aarch64", "virt", ("-cpu", "cortex-a57", *MMIO)),
    "aarch64, virt, PCI": Case("aarch64", "virt,gic-version=3,iommu=smmuv3", ("-cpu", "max", "-smp", "2", *PCIE)),
    "aarch64, virt, no ACPI": Case("aarch64", "virt,gic-version=4,virtualization=on,acpi=off", ("-cpu", "max")),
    "aarch64, virt, secure": Case("aarch64", "virt,secure=on,virtualization=on,mte=on", ("-cpu", "max")),
    "aarch64, virt, 32 bit": Case("aarch64", "virt", ("-cpu", "cortex-a15", "-device", "ramfb")),
    "aarch64, virt, 2.8": Case("aarch64", "virt-2.8", ("-cpu", "cortex-a57")),
    "aarch64, virt, 8.2": Case("aarch64", "virt-8.2", ("-cpu", "neoverse-n1")),
    "aarch64, sbsa-ref": Case("aarch64", "sbsa-ref"),
    "arm, virt": Case("arm", "virt", ("-cpu", "cortex-a15", *MMIO)),
    "arm, virt, PCI": Case("arm", "virt,gic-version=3", ("-cpu", "max", *PCIE)),
}

SOUNDLESS = ("-audiodev", "none,id=none")
WITH_OTHER_PAGES = [
    Case("aarch64", "raspi3b"),
    Case("aarch64", "virt-2.7", ("-cpu", "cortex-a57")),
    Case("aarch64", "xlnx-zcu102,audiodev=none", SOUNDLESS),
    Case("arm", "raspi2b"),
    Case("arm", "versatilepb,audiodev=none", SOUNDLESS),
    Case("arm", "vexpress-a9,audiodev=none", SOUNDLESS),
    Case("arm", "virt-2.6", ("-cpu", "cortex-a15")),
]
IN_ROUNDS = {
    "the hash table of the processor ('spapr/htab') is saved in rounds": Case("ppc64", "pseries"),
    "storage attributes ('s390-storage_attributes') are saved in rounds": Case("s390x", "s390-ccw-virtio"),
}


@pytest.fixture
def boot(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BootFolder]:
    with BootFolder(tmp_path_factory.mktemp("b") / "boot") as folder:
        yield folder


def start(case: Case, *, incoming: bool = False) -> QemuProcess:
    small = Ram(64 * MIB, "default") if "-m" not in case.args else None
    require_machine(case.machine, case.target)
    return QemuProcess(*case.args, ram=small, machine=case.machine, target=case.target, incoming=incoming, paused=True)


def head(path: Path) -> bytes:
    """Magic, version and configuration section: what stands before the ram section."""
    with path.open("rb") as file:
        return file.read(4096).split(b"\x03ram\0\0\0\0\0\0\0\4")[0][: -len(b"\1\0\0\0\0")]


@pytest.mark.parametrize("name", SAVED)
def test_it_has_the_sections_of_qemus_own_file_and_loads(tmp_path: Path, name: str) -> None:
    case, ours, qemus = SAVED[name], tmp_path / "ours", tmp_path / "qemus"
    with start(case) as guest:
        said = report("save", ours, "--qmp", guest.monitor_path)
        blocks = [block.name for block in guest.ramblocks()]
        migrate(guest, qemus)
    mine, theirs = read_stored(ours), read_stored(qemus, description=vm_description(qemus))
    assert head(ours) == head(qemus)
    assert sorted(mine.blocks) == sorted(theirs.blocks) == sorted(blocks) == sorted(b["idstr"] for b in said["blocks"])
    assert {block.name: block.used for block in mine.blocks.values()} == {
        block.name: block.used for block in theirs.blocks.values()
    }
    with parallel_fixedram.open_image(str(ours)) as image:
        assert image.file.target == case.target
        devices = [(each.name, each.instance_id, each.version_id, each.length) for each in image.file.devices]
    assert devices == [(each.name, each.instance, each.version, each.length) for each in theirs.sections]
    with start(case, incoming=True) as stock:
        stock.load(f"file:{ours}")
        assert stock.status() == "prelaunch"


def is_refused(case: Case, folder: Path, message: str) -> None:
    """Before anything is written, and without a word to the guest."""
    require_machine(case.machine, case.target)
    with QemuProcess(*case.args, ram=None, machine=case.machine, target=case.target, paused=True) as guest:
        refused(call("save", folder / "saved", "--qmp", guest.monitor_path), 4, message, hint="")
        assert guest.take_events() == []
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("case", WITH_OTHER_PAGES, ids=lambda case: f"{case.target}, {case.machine}")
def test_a_machine_whose_pages_are_of_another_size_is_refused_by_name(tmp_path: Path, case: Case) -> None:
    is_refused(
        case,
        tmp_path,
        f"machine type {case.machine.split(',')[0]!r} of target {case.target!r} cannot be saved: "
        "of Arm's machines only virt (from 2.8 on) and sbsa-ref are known to have pages of 4 KiB\n",
    )


@pytest.mark.parametrize("reason", IN_ROUNDS)
def test_a_machine_with_sections_that_are_saved_in_rounds_is_refused_by_name(tmp_path: Path, reason: str) -> None:
    case = IN_ROUNDS[reason]
    is_refused(case, tmp_path, f"a guest of target {case.target!r} cannot be saved: {reason}")


@pytest.mark.parametrize("setting", ["send-configuration", "send-section-footer"])
class TestSettings:
    """Of a QEMU whose streams are not as they are by default."""

    def test_its_guest_is_not_saved(self, tmp_path: Path, setting: str) -> None:
        message = f"QEMU runs with migration.{setting}=off, and neither writes nor loads streams in the default format"
        with QemuProcess("-global", f"migration.{setting}=off", paused=True) as guest:
            result = call("save", tmp_path / "saved", "--qmp", guest.monitor_path)
            refused(result, 4, f"{message}\n", f"leave out -global migration.{setting}=off")
        assert list(tmp_path.iterdir()) == []

    def test_it_loads_no_guest(self, tmp_path: Path, boot: BootFolder, setting: str) -> None:
        with QemuProcess(paused=True) as guest:
            report("save", tmp_path / "saved", "--qmp", guest.monitor_path)
        line = boot.line("-global", f"migration.{setting}=off")
        refused(boot.attempt("restore", tmp_path / "saved", line=line), 4, f"QEMU runs with migration.{setting}=off")


def test_settings_that_change_nothing_for_us_are_accepted(tmp_path: Path) -> None:
    settings = ("-global", "migration.send-switchover-start=off", "-global", "migration.store-global-state=off")
    machine = "q35,suppress-vmdesc=on"
    with QemuProcess(*settings, machine=machine, paused=True) as guest:
        report("save", tmp_path / "saved", "--qmp", guest.monitor_path)
    with QemuProcess(*settings, machine=machine, incoming=True) as stock:
        stock.load(f"file:{tmp_path / 'saved'}")
        assert stock.status() == "prelaunch"


@pytest.mark.parametrize("verb", ["restore", "clone"])
def test_a_file_of_another_target_of_the_same_machine_type_is_refused(
    tmp_path: Path, boot: BootFolder, verb: str
) -> None:
    with start(Case("x86_64", "pc")) as guest:
        report("save", tmp_path / "saved", "--qmp", guest.monitor_path)
    line = boot.line(machine="pc", ram=Ram(64 * MIB, "default"), program=require_qemu("i386"))
    message = "the file has a guest for 'x86_64', this QEMU emulates 'i386'\n"
    refused(boot.attempt(verb, tmp_path / "saved", line=line), 2, message, hint="")


@pytest.mark.parametrize("name", ["microvm", "isapc", "aarch64, sbsa-ref", "aarch64, virt, secure"])
def test_its_default_ram_is_found_and_cloned(tmp_path: Path, boot: BootFolder, name: str) -> None:
    case, path = SAVED[name], tmp_path / "saved"
    with start(case) as guest:
        report("save", path, "--qmp", guest.monitor_path)
    ram = Ram(64 * MIB, "default")
    require_machine(case.machine, case.target)
    line = boot.line(*case.args, ram=ram, machine=case.machine, program=require_qemu(case.target), clones=1)
    (clone,) = boot.start("clone", path, "--paused", line=line).guests
    assert clone.status() == "prelaunch"
