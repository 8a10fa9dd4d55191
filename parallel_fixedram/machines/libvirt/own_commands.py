"""A bridge's commands beyond QMP: for what only libvirt knows about a domain or can do with it."""

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
    """The commands by name: functions of a command's arguments, which raise libvirt's errors or a MachineError.

    ``libvirt-xml`` returns the definition for a saved image. ``libvirt-destroy`` ends the domain. ``libvirt-snapshot``
    (``overlays``: path by device) puts disks on existing images. ``libvirt-will-make`` (``path``) announces such an
    image, and ``libvirt-tidy`` removes those announced that no disk is on. ``libvirt-commit`` (``device``, ``base``)
    begins to merge a disk's images into one below them, ``libvirt-commit-state`` (``device``) reports its progress, and
    ``libvirt-commit-end`` (``device``, ``pivot``) ends it, with the disk on that image or not.
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
    """libvirt's names for the disks of a running domain, by alias, which is the device's id in QEMU."""
    found = {}
    for disk in ET.fromstring(xml).iterfind("devices/disk"):
        alias, target = disk.find("alias"), disk.find("target")
        if alias is not None and target is not None:
            found[alias.get("name", "")] = target.get("dev", "")
    return found


def files(xml: str) -> set[str]:
    """All image files of a domain's disks, backing files included."""
    return {path for source in ET.fromstring(xml).iterfind("devices/disk//source") if (path := source.get("file"))}


def known(targets: Mapping[str, str], device: str) -> str:
    """libvirt's name for a disk.

    Raises:
        MachineError: it has none.
    """
    if device not in targets:
        raise MachineError(f"libvirt knows no disk {device!r}")
    return targets[device]


def snapshot_xml(targets: Mapping[str, str], overlays: Mapping[str, str]) -> str:
    """The XML for a snapshot of these disks and no others, which puts them on these images.

    Raises:
        MachineError: libvirt does not know one of the disks.
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
    """Whether a disk's mirror is complete, so that the disk can switch to it (libvirt docs/formatdomain.rst,
    mirror)."""
    for disk in ET.fromstring(xml).iterfind("devices/disk"):
        name, mirror = disk.find("target"), disk.find("mirror")
        if name is not None and name.get("dev") == target and mirror is not None:
            return mirror.get("ready") == "yes"
    return False
