"""What distinguishes a clone from its twins, as far as a command line can::

    -device vmgenid,guid=auto   ->   -device vmgenid,guid=A-GUID-OF-ITS-OWN
                                     -fw_cfg name=opt/parallel_fixedram/clone,string={"n": 0, "id": ..., "parent": ...}

vmgenid: when a guest was loaded, the device writes its GUID into guest memory and notifies the guest (QEMU
hw/acpi/vmgenid.c, vmgenid_post_load); Linux then reseeds its random number generator. If the saved machine lacks the
device it is not added, because the guest would not know about it.

fw_cfg: QEMU sorts its entries by name, and a guest finds an entry by its number (QEMU hw/nvram/fw_cfg.c,
fw_cfg_add_file_callback). Another entry renumbers those behind it, so it is left out if the guest may have looked up
one of these. Behind ``opt/p`` QEMU itself has only ``vgaroms/``, which firmware looks up anew at every boot. Migration
streams do not contain the entries.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from parallel_fixedram.boot.command_line import CommandLine, join_properties, split_properties
from parallel_fixedram.boot.device_options import DeviceOption, devices
from parallel_fixedram.format.device_sections import FW_CFG, VMGENID, names_of
from parallel_fixedram.image.image import Image

ENTRY = "opt/parallel_fixedram/clone"
"""Name of the entry in fw_cfg that tells a guest which clone it is."""

NO_VMGENID = "the saved machine has no vmgenid device"
_SHARED = "MAC addresses, machine ids and keys"


@dataclass(frozen=True, slots=True, kw_only=True)
class Parent:
    """The saved machine that clones are made from."""

    digest: str | None
    """Of the file; None if it has none."""
    has_vmgenid: bool
    has_fw_cfg: bool

    @classmethod
    def of(cls, image: Image) -> Parent:
        """The machine in a file."""
        names = names_of(image.file.devices)
        return cls(digest=image.file.digest, has_vmgenid=VMGENID in names, has_fw_cfg=FW_CFG in names)


@dataclass(frozen=True, slots=True, kw_only=True)
class Distinct:
    """Command lines of clones with identities of their own."""

    lines: Sequence[CommandLine]
    ids: Sequence[str]
    """A UUID for each clone; it is also the GUID of its vmgenid device, if it has one."""
    changes: Sequence[str]
    """What differs from what the user gave, one line each."""
    notes: Sequence[str]
    """What the user has to know, one line each."""


def distinct(lines: Sequence[CommandLine], parent: Parent, remedy: str) -> Distinct:
    """Give clones identities of their own.

    Args:
        lines: one for each clone, made from the same command line.
        parent: the machine that they are clones of.
        remedy: what can be done about what they share, as the end of a sentence.

    Raises:
        RequestError: a device of the command line is malformed.
    """
    ids = [str(uuid.uuid4()) for _ in lines]
    missing = _no_entry(lines[0], parent)
    has_device = bool(_vmgenids(lines[0]))
    made = []
    for number, (line, id_) in enumerate(zip(lines, ids, strict=True)):
        told = {"n": number, "id": id_, "parent": parent.digest}
        other = _with_guid(line, id_)
        made.append(other if missing else _with_entry(other, told))
    changes = ["each clone's vmgenid has a GUID of its own"] if has_device else []
    if not missing and _entries(lines[0]):
        changes.append(f"-fw_cfg {ENTRY} says which clone it is")
    notes = [f"{_shared(parent, has_device=has_device)}, {remedy}", *([missing] if missing else [])]
    return Distinct(lines=made, ids=ids, changes=changes, notes=notes)


def twins(lines: Sequence[CommandLine]) -> Distinct:
    """Leave everything as it is, with a note that says what that means."""
    note = (
        "clones are the same machine: MAC addresses, machine ids, keys and random numbers to come are equal "
        "until the guest changes them"
    )
    return Distinct(lines=lines, ids=(), changes=(), notes=(note,))


def no_room_hint(message: str) -> str:
    """What to do if QEMU's message says that fw_cfg is full; otherwise empty.

    Machine types have room for 16 or 32 entries, and QEMU aborts if it is given more.
    """
    if "fw_cfg_file_slots" not in message:
        return ""
    return f"fw_cfg has no room for {ENTRY}, which tells clones which one they are; --identity same leaves it out"


def _shared(parent: Parent, *, has_device: bool) -> str:
    """What clones still share, as the beginning of a sentence."""
    if not parent.has_vmgenid:
        return f"{NO_VMGENID}: clones share random numbers to come, {_SHARED}"
    if not has_device:
        return f"the GUID of a vmgenid in a -readconfig file cannot be changed: clones share random numbers, {_SHARED}"
    return f"clones have random numbers of their own (vmgenid), and share {_SHARED}"


def _vmgenids(line: CommandLine) -> list[DeviceOption]:
    return [device for device in devices(line) if device.driver == VMGENID]


def _with_guid(line: CommandLine, guid: str) -> CommandLine:
    """The command line with this GUID for its vmgenid device."""
    replaced: dict[int, str] = {}
    for device in _vmgenids(line):
        replaced[device.position] = device.with_property("guid", guid)
        setting = f"device.{device.properties.get('id', '')}.guid="
        for option in line.options:  # -set comes after all -device (QEMU system/vl.c)
            if option.name == "set" and (option.value or "").startswith(setting):
                replaced[option.position + 1] = setting + guid
    return _replaced(line, replaced)


def _with_entry(line: CommandLine, told: Mapping[str, object]) -> CommandLine:
    """The command line with our entry in fw_cfg, which replaces an earlier one."""
    value = join_properties([("name", ENTRY), ("string", json.dumps(told))])
    if there := _entries(line):
        return _replaced(line, dict.fromkeys(there, value))
    return CommandLine.parse([*line.arguments, "-fw_cfg", value])


def _entries(line: CommandLine) -> list[int]:
    """Positions of our own entry's values in the arguments."""
    return [position for position, name in _fw_cfg_names(line) if name == ENTRY]


def _no_entry(line: CommandLine, parent: Parent) -> str:
    """Why clones cannot be told which clone they are, a sentence; empty if they can."""
    if not parent.has_fw_cfg:
        return "the machine has no fw_cfg, which would tell clones which one they are"
    names = [name for _, name in _fw_cfg_names(line)]
    behind = min((name for name in names if name > ENTRY), default="")
    if behind and ENTRY not in names:
        return f"fw_cfg cannot tell clones which one they are: {ENTRY} would give {behind!r} another number"
    return ""


def _fw_cfg_names(line: CommandLine) -> list[tuple[int, str]]:
    """Position of each ``-fw_cfg`` value in the arguments, with the name of its entry."""
    return [
        (option.position + 1, dict(split_properties(option.value or "", "name")).get("name", ""))
        for option in line.options
        if option.name == "fw_cfg"
    ]


def _replaced(line: CommandLine, replaced: Mapping[int, str]) -> CommandLine:
    if not replaced:
        return line
    return CommandLine.parse([replaced.get(position, text) for position, text in enumerate(line.arguments)])
