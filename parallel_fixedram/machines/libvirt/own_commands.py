"""What a bridge executes beyond QMP: what only libvirt knows of a domain, or does with it."""

from __future__ import annotations

import contextlib
import os
import xml.etree.ElementTree as ET
from collections.abc import Callable, Mapping
from typing import Any

from parallel_fixedram.core.errors import MachineError
from parallel_fixedram.machines.libvirt.library import Domain, library

Arguments = Mapping[str, Any]


def own_commands(opened: Domain) -> dict[str, Callable[[Arguments], object]]:
    """By name: functions of the command's arguments that raise libvirt's errors or a MachineError.

    ``libvirt-xml``: the definition for a saved image. ``libvirt-destroy``: the end of the domain. ``libvirt-snapshot``
    (``overlays``: path by device): disks go on with images that are there. ``libvirt-tidy``: those of them that
    ``libvirt-will-make`` (``path``) named, and that no disk is on, are removed. ``libvirt-commit`` (``device``,
    ``base``), ``libvirt-commit-state`` (``device``), ``libvirt-commit-end`` (``device``, ``pivot``): a disk's images
    merged into one below them, which it goes on with, or not.
    """
    libvirt, domain = library(), opened.domain

    def xml(_: Arguments) -> str:
        return str(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_SECURE | libvirt.VIR_DOMAIN_XML_MIGRATABLE))

    def destroy(_: Arguments) -> object:
        domain.destroy()
        return {}

    def snapshot(arguments: Arguments) -> object:
        flags = libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA
        flags |= libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_ATOMIC | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REUSE_EXT
        domain.snapshotCreateXML(snapshot_xml(targets(domain.XMLDesc(0)), arguments["overlays"]), flags)
        return {}

    own = {"libvirt-xml": xml, "libvirt-destroy": destroy, "libvirt-snapshot": snapshot}
    return own | _tidying(domain) | _merging(libvirt, domain)


def _tidying(domain: Any) -> dict[str, Callable[[Arguments], object]]:
    named: list[str] = []

    def will_make(arguments: Arguments) -> object:
        named.append(arguments["path"])
        return {}

    def tidy(_: Arguments) -> object:
        used = files(domain.XMLDesc(0)) if named else set()
        for path in named:
            if path not in used:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
        return {}

    return {"libvirt-will-make": will_make, "libvirt-tidy": tidy}


def _merging(libvirt: Any, domain: Any) -> dict[str, Callable[[Arguments], object]]:
    def commit(arguments: Arguments) -> object:
        domain.blockCommit(target(arguments), arguments["base"], None, 0, libvirt.VIR_DOMAIN_BLOCK_COMMIT_ACTIVE)
        return {}

    def commit_state(arguments: Arguments) -> object:
        found = domain.blockJobInfo(target(arguments), 0)
        if not found or found["type"] != libvirt.VIR_DOMAIN_BLOCK_JOB_TYPE_ACTIVE_COMMIT:
            return {}
        cur, end = found["cur"], found["end"]
        return {"cur": cur, "end": end, "ready": cur == end and is_ready(domain.XMLDesc(0), target(arguments))}

    def commit_end(arguments: Arguments) -> object:
        flags = libvirt.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT if arguments["pivot"] else 0
        domain.blockJobAbort(target(arguments), flags)
        return {}

    def target(arguments: Arguments) -> str:
        return known(targets(domain.XMLDesc(0)), arguments["device"])

    return {"libvirt-commit": commit, "libvirt-commit-state": commit_state, "libvirt-commit-end": commit_end}


def targets(xml: str) -> dict[str, str]:
    """For each disk of a running domain, by its alias, which is its device's id in QEMU: libvirt's name for it."""
    found = {}
    for disk in ET.fromstring(xml).iterfind("devices/disk"):
        alias, target = disk.find("alias"), disk.find("target")
        if alias is not None and target is not None:
            found[alias.get("name", "")] = target.get("dev", "")
    return found


def files(xml: str) -> set[str]:
    """Every file that a disk of a domain is on, images below others included."""
    return {path for source in ET.fromstring(xml).iterfind("devices/disk//source") if (path := source.get("file"))}


def known(targets: Mapping[str, str], device: str) -> str:
    """libvirt's name for a disk.

    Raises:
        MachineError: it has none.
    """
    if device not in targets:
        raise MachineError(f"disk {device!r} is none that libvirt knows of")
    return targets[device]


def snapshot_xml(targets: Mapping[str, str], overlays: Mapping[str, str]) -> str:
    """What snapshot is wanted: of these disks, which go on with these images, and of no other.

    Raises:
        MachineError: libvirt knows of no such disk.
    """
    root = ET.Element("domainsnapshot")
    disks = ET.SubElement(root, "disks")
    names = {known(targets, device): path for device, path in overlays.items()}
    for name in targets.values():
        disk = ET.SubElement(disks, "disk", name=name, snapshot="external" if name in names else "no")
        if name in names:
            ET.SubElement(disk, "driver", type="qcow2")
            ET.SubElement(disk, "source", file=names[name])
    return ET.tostring(root, encoding="unicode")


def is_ready(xml: str, target: str) -> bool:
    """Whether the mirror of a disk has all, so that it can be the disk (libvirt docs/formatdomain.rst, mirror)."""
    for disk in ET.fromstring(xml).iterfind("devices/disk"):
        name, mirror = disk.find("target"), disk.find("mirror")
        if name is not None and name.get("dev") == target and mirror is not None:
            return mirror.get("ready") == "yes"
    return False
