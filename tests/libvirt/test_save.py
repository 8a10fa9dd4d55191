"""Domains of a real libvirt, saved while they run: they go on, and their images bring back what they were."""

from pathlib import Path

import pytest
from support.command import report
from support.libvirt_domains import MIB, SHARED, Domain, virsh
from support.qemu_linux import LinuxGuest

from parallel_fixedram.verbs.verify import verify

DISK = """
<disk type='file'><driver name='qemu' type='raw'/><source file='{image}'/><target dev='vda' bus='virtio'/></disk>
<interface type='user'><model type='virtio'/></interface>
<video><model type='vga'/></video>
<graphics type='vnc' port='-1'/>
"""


def goes_on_from(domain: Domain, linux: LinuxGuest, tick: int) -> None:
    """Hold a restored domain against the tick before it was saved, and its known file."""
    number, found = domain.tick()
    assert number >= tick
    assert domain.tick() == (number + 1, linux.md5())
    assert found == linux.md5()


@pytest.mark.parametrize("kind", ["private", "shared", "full"])
def test_a_domain_is_saved_while_it_runs_and_virsh_restore_brings_it_back(
    kind: str, tmp_path: Path, linux: LinuxGuest
) -> None:
    ours, theirs, image = tmp_path / "ours", tmp_path / "theirs", tmp_path / "disk.img"
    image.write_bytes(bytes(MIB))
    options = {
        "private": {},
        "shared": {"backing": SHARED},
        "full": {"vcpus": 2, "memory": 256 * MIB, "devices": DISK.format(image=image)},
    }[kind]
    with Domain(tmp_path, linux, **options) as domain:
        domain.start()
        tick, _ = domain.tick()
        disks = ["--disks", "none"] if kind == "full" else []
        saved = report("save", ours, "--libvirt", domain.name, *disks)
        assert (saved["image"], saved["choice"]["capture"]) == ("libvirt", "snapshot")
        assert saved["seconds"]["pause"] > 0
        assert domain.state == "running"
        domain.serial.take()
        goes_on_from(domain, linux, tick)
        assert verify(str(ours)).ok

        domain.destroy()
        domain.serial.take()
        virsh("restore", ours)
        goes_on_from(domain, linux, tick)
        virsh("save", domain.name, theirs)
        virsh("restore", theirs)
        goes_on_from(domain, linux, tick)


def test_each_capture_works_on_a_domain_and_a_plain_file_is_what_qemu_loads(tmp_path: Path, linux: LinuxGuest) -> None:
    with Domain(tmp_path, linux) as domain:
        domain.start()
        domain.tick()
        for capture in ("compare", "stopped"):
            saved = report(
                "save", tmp_path / capture, "--libvirt", domain.name, "--image", "plain", "--capture", capture
            )
            assert (saved["image"], saved["choice"]["capture"]) == ("plain", capture)
            assert domain.state == "running"
            domain.tick()
            assert verify(str(tmp_path / capture)).ok
