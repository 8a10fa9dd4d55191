"""Domains of a real libvirt, saved while they run: they go on, and their images bring back what they were."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.command import report
from support.libvirt_domains import MIB, SHARED, Domain, virsh
from support.qemu_linux import LinuxGuest
from support.sources import huge_file

from parallel_fixedram.verbs.verify import verify

pytestmark = pytest.mark.usefixtures("library")

DEVICES = """
<disk type='file'><driver name='qemu' type='raw'/><source file='{image}'/><target dev='vda' bus='virtio'/></disk>
<interface type='user'><model type='virtio'/></interface>
<video><model type='vga'/></video>
<graphics type='vnc' port='-1'/>
"""

HUGE = SHARED.replace("<source", "<hugepages><page size='2' unit='M'/></hugepages><source")


@pytest.fixture(scope="module")
def domain(tmp_path_factory: pytest.TempPathFactory, linux: LinuxGuest) -> Iterator[Domain]:
    """One with private RAM; each test leaves it running."""
    with Domain(tmp_path_factory.mktemp("domain"), linux) as domain:
        domain.start()
        domain.tick()
        yield domain


def check_goes_on(domain: Domain, linux: LinuxGuest, tick: int) -> None:
    """Hold a domain against the tick before it was saved, and its known file."""
    domain.serial.take()
    number, found = domain.tick()
    assert number >= tick
    assert domain.tick() == (number + 1, linux.md5())
    assert found == linux.md5()
    assert domain.state == "running"


def test_a_domain_is_saved_while_it_runs_and_virsh_does_with_it_what_it_did_before(
    domain: Domain, tmp_path: Path, linux: LinuxGuest
) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    tick, _ = domain.tick()
    saved = report("save", ours, "--libvirt", domain.name)
    assert (saved["image"], saved["choice"]["capture"]) == ("libvirt", "snapshot")
    assert saved["seconds"]["pause"] > 0
    check_goes_on(domain, linux, tick)
    assert verify(str(ours)).ok
    domain.destroy()
    virsh("restore", ours)
    check_goes_on(domain, linux, tick)
    virsh("save", domain.name, theirs)
    virsh("restore", theirs)
    check_goes_on(domain, linux, tick)
    defined = tmp_path / "defined.xml"
    defined.write_text(virsh("dumpxml", domain.name, "--inactive"))
    virsh("define", defined)
    try:
        virsh("managedsave", domain.name)
        virsh("start", domain.name)
        check_goes_on(domain, linux, tick)
    finally:
        virsh("undefine", domain.name, "--managed-save")


@pytest.mark.parametrize("capture", ["compare", "stopped"])
def test_each_capture_works_on_a_domain_and_a_plain_file_has_no_head(
    capture: str, domain: Domain, tmp_path: Path, linux: LinuxGuest
) -> None:
    file = tmp_path / "vm"
    tick, _ = domain.tick()
    saved = report("save", file, "--libvirt", domain.name, "--image", "plain", "--capture", capture)
    assert (saved["image"], saved["choice"]["capture"]) == ("plain", capture)
    check_goes_on(domain, linux, tick)
    assert file.read_bytes()[:4] == b"QEVM"
    assert verify(str(file)).ok


def test_a_domain_that_stands_still_stays_so_and_so_it_is_restored(domain: Domain, tmp_path: Path) -> None:
    file = tmp_path / "vm"
    virsh("suspend", domain.name)
    saved = report("save", file, "--libvirt", domain.name)
    assert saved["seconds"]["pause"] == 0
    assert domain.state == "paused"
    domain.destroy()
    virsh("restore", file)
    assert domain.state == "paused"
    virsh("resume", domain.name)
    domain.serial.take()
    domain.tick()


def test_shared_memory_two_processors_and_devices_come_back(tmp_path: Path, linux: LinuxGuest) -> None:
    ours, image = tmp_path / "ours", tmp_path / "disk.img"
    image.write_bytes(bytes(MIB))
    devices = DEVICES.format(image=image)
    with Domain(tmp_path, linux, backing=SHARED, vcpus=2, memory=256 * MIB, devices=devices) as domain:
        domain.start()
        tick, _ = domain.tick()
        report("save", ours, "--libvirt", domain.name, "--disks", "none")
        check_goes_on(domain, linux, tick)
        domain.destroy()
        virsh("restore", ours)
        check_goes_on(domain, linux, tick)


def test_huge_pages_come_back(tmp_path: Path, linux: LinuxGuest) -> None:
    ours = tmp_path / "ours"
    with huge_file(1, pool=140), Domain(tmp_path, linux, backing=HUGE, memory=256 * MIB) as domain:
        domain.start()
        tick, _ = domain.tick()
        report("save", ours, "--libvirt", domain.name)
        check_goes_on(domain, linux, tick)
        domain.destroy()
        virsh("restore", ours)
        check_goes_on(domain, linux, tick)
