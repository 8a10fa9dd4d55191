"""What may keep a domain's QEMU from using a descriptor that it is handed: the security label it runs under."""

from __future__ import annotations

import xml.etree.ElementTree as ET

_NAMES = {"selinux": "SELinux", "apparmor": "AppArmor"}


def confined_by(xml: str) -> str:
    """The security module that confines a running domain's QEMU; empty if there is none.

    Args:
        xml: of the running domain (libvirt docs/formatdomain.rst, seclabel).
    """
    for label in ET.fromstring(xml).iterfind("seclabel"):
        if (name := _NAMES.get(label.get("model", ""))) and label.get("type") != "none":
            return name
    return ""
