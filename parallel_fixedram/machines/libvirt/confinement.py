"""What may keep a domain's QEMU from a descriptor that it is handed: the label that libvirt runs it under."""

from __future__ import annotations

import xml.etree.ElementTree as ET

_NAMES = {"selinux": "SELinux", "apparmor": "AppArmor"}


def confined_by(xml: str) -> str:
    """Who confines the QEMU of a running domain; empty where nobody does.

    Args:
        xml: of the domain as it runs (libvirt docs/formatdomain.rst, seclabel).
    """
    for label in ET.fromstring(xml).iterfind("seclabel"):
        if (name := _NAMES.get(label.get("model", ""))) and label.get("type") != "none":
            return name
    return ""
