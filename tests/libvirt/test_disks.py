"""Disks of a domain that is saved while it runs: libvirt knows what they go on with, and how they come back."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from support.cli import call, done, refused
from support.command import report
from support.faults import Forked, behind
from support.libvirt_domains import MIB, Domain, virsh
from support.qemu_linux import LinuxGuest

from parallel_fixedram.machines.libvirt.overlays import LibvirtOverlays
from parallel_fixedram.machines.libvirt.own_commands import snapshot_xml, targets
from parallel_fixedram.machines.qemu.monitor import Monitor
from parallel_fixedram.verbs.verify import verify

pytestmark = pytest.mark.usefixtures("library")

DISK = "<disk type='file'><driver name='qemu' type='{kind}'/><source file='{path}'/>{more}<target {target}/></disk>"


def sources(domain: Domain) -> dict[str, str]:
    """By target: which file libvirt says that each disk is in."""
    root = ET.fromstring(virsh("dumpxml", domain.name))
    return {
        disk.find("target").get("dev"): disk.find("source").get("file")  # type: ignore[union-attr,misc]
        for disk in root.iterfind("devices/disk")
    }


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_disks_go_on_with_overlays_that_libvirt_knows_and_merges_back(tmp_path: Path, linux: LinuxGuest) -> None:
    images = {"vda": tmp_path / "a.img", "vdb": tmp_path / "b.qcow2", "vdc": tmp_path / "c.img"}
    images["vda"].write_bytes(bytes(MIB))
    images["vdc"].write_bytes(bytes(MIB))
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", images["vdb"], "1M"], check=True)
    devices = "".join(
        DISK.format(
            kind="qcow2" if name == "vdb" else "raw",
            path=path,
            more="<readonly/>" if name == "vdc" else "",
            target=f"dev='{name}' bus='virtio'",
        )
        for name, path in images.items()
    )
    before = {name: str(path) for name, path in images.items()}
    file = tmp_path / "vm"
    with Domain(tmp_path, linux, devices=devices) as domain:
        domain.start()
        domain.tick()
        digests = {path: digest(path) for path in images.values()}
        saved = report("save", file, "--libvirt", domain.name, "--disks", "overlay")
        assert not any("again" in note for note in saved["notes"])
        overlays = {"vda": saved["disks"][0]["overlay"], "vdb": saved["disks"][1]["overlay"]}
        assert sources(domain) == before | overlays
        assert domain.state == "running"
        domain.serial.take()
        domain.tick()
        assert {path: digest(path) for path in images.values()} == digests
        assert verify(str(file)).ok

        assert report("disks", "--libvirt", domain.name)["disks"][0]["overlays"] == 1
        merged = report("disks", "commit", "--libvirt", domain.name)
        assert [each["overlays"] for each in merged["committed"]] == [[overlays["vda"]], [overlays["vdb"]]]
        assert sources(domain) == before
        assert [path for path in overlays.values() if Path(path).exists()] == []
        assert "No current block job" in virsh("blockjob", domain.name, "vda")
        domain.tick()

        domain.destroy()
        domain.serial.take()
        virsh("restore", file)
        domain.tick()
        assert sources(domain) == before


def test_a_save_that_fails_before_the_instant_leaves_no_overlay(tmp_path: Path) -> None:
    image = tmp_path / "a.img"
    image.write_bytes(bytes(MIB))
    with Domain(tmp_path, devices=DISK.format(kind="raw", path=image, more="", target="dev='vda'")) as domain:
        domain.start()
        argv = ["--libvirt", domain.name, "--disks", "overlay", "--capture", "rounds"]
        before = sorted(tmp_path.iterdir())
        refused(call("save", tmp_path / "vm", *argv), 2, "dirty log")
        assert sorted(tmp_path.iterdir()) == before
        assert sources(domain) == {"vda": str(image)}
        done(call("disks", "--libvirt", domain.name))


def test_a_save_that_is_killed_before_the_instant_leaves_no_overlay_and_one_after_it_leaves_those_in_use(
    tmp_path: Path,
) -> None:
    image = tmp_path / "a.img"
    image.write_bytes(bytes(MIB))
    with Domain(tmp_path, devices=DISK.format(kind="raw", path=image, more="", target="dev='vda'")) as domain:
        domain.start()
        argv = ["save", tmp_path / "vm", "--libvirt", domain.name, "--disks", "overlay", "--capture", "compare"]
        for moment, is_used in (
            (behind(LibvirtOverlays, "_make"), False),
            (behind(Monitor, "execute", "libvirt-snapshot"), True),
        ):
            with Forked(*argv, moment=moment, act=lambda *_: os.kill(os.getpid(), signal.SIGKILL)) as running:
                assert running.finish().code == -signal.SIGKILL
                assert running.left() == []
            assert domain.state == "running"
            overlays = [str(path) for path in tmp_path.glob("*.fixedram-*")]
            assert overlays == ([sources(domain)["vda"]] if is_used else [])


def test_the_snapshot_is_of_the_disks_that_have_an_overlay_and_of_no_other() -> None:
    devices = "".join(
        f"<disk><target dev='{name}'/><alias name='{alias}'/></disk>" for name, alias in (("vda", "x"), ("sda", "y"))
    )
    names = targets(f"<domain><devices>{devices}<disk><target dev='vdb'/></disk></devices></domain>")
    assert names == {"x": "vda", "y": "sda"}
    disks = ET.fromstring(snapshot_xml(names, {"y": "/a & b"})).findall("disks/disk")
    assert [(disk.get("name"), disk.get("snapshot")) for disk in disks] == [("vda", "no"), ("sda", "external")]
    assert disks[1].find("source").get("file") == "/a & b"  # type: ignore[union-attr]
    with pytest.raises(Exception, match="libvirt knows no disk 'z'"):
        snapshot_xml(names, {"z": "/overlay"})
