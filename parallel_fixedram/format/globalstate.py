"""The section ``globalstate``: the guest's run state when it was saved, which it has again once it is loaded.

::

    body := size:be32  runstate[32]  has_vm_was_suspended:u8  vm_was_suspended:u8  unused[66]

``size`` is the length of the run state's name plus one for its NUL. Before 8.2 QEMU declared 100 bytes for the name and
no other fields, which is the same layout. Source: QEMU migration/global_state.c.
"""

from __future__ import annotations

import struct

from parallel_fixedram.format import stream
from parallel_fixedram.format.device_sections import DeviceSection, read_device_sections

GLOBALSTATE = "globalstate"
RUNNING = "running"

_LOADABLE = frozenset(
    (
        *(RUNNING, "suspended", "paused", "prelaunch", "postmigrate", "shutdown"),
        *("guest-panicked", "internal-error", "io-error", "watchdog"),
    )
)
"""Run states that QEMU can enter after loading a guest; any other makes it abort (runstate_transitions_def,
system/runstate.c)."""

_VERSION = 1
_RUNSTATE = struct.Struct(">I32s")
_SUSPENDED = struct.pack(">BB66x", 1, 0)
_FOOTER_BYTES = len(stream.pack_footer(0))


def with_run_state(sections: bytes, state: str) -> bytes:
    """Device sections as QEMU's own migration would write them for a guest in a run state.

    ``xen-save-devices-state`` always records that the guest is running (qmp_xen_save_devices_state()).

    Args:
        sections: what that command writes, without head and end mark.
        state: QMP name of the run state from before the guest was stopped to be saved. One that QEMU cannot load, such
            as ``debug``, becomes ``paused``.

    Raises:
        FormatError: ``sections`` is not a sequence of whole device sections.
    """
    if state == RUNNING:
        return sections  # correct already, and the guest stands still meanwhile: do not parse it
    runstate = _pack(state if state in _LOADABLE else "paused")
    found = read_device_sections(sections)
    for section in found:
        if section.name == GLOBALSTATE:
            at = section.offset + section.length - _FOOTER_BYTES - section.body_length
            return sections[:at] + runstate + sections[at + _RUNSTATE.size :]
    return sections + _section(found, runstate + _SUSPENDED)  # with migration.store-global-state=off


def run_state(body: bytes) -> str:
    """The run state in the body of a ``globalstate`` section; empty if it has none."""
    if len(body) < _RUNSTATE.size:
        return ""
    _, name = _RUNSTATE.unpack_from(body)
    text: str = name.partition(b"\0")[0].decode("ascii", "replace")
    return text


def _pack(state: str) -> bytes:
    return _RUNSTATE.pack(len(state) + 1, state.encode("ascii"))


def _section(others: tuple[DeviceSection, ...], body: bytes) -> bytes:
    section_id = 1 + max((section.section_id for section in others), default=0)
    head = stream.pack_section_head(stream.QEMU_VM_SECTION_FULL, section_id, GLOBALSTATE, 0, _VERSION)
    return head + body + stream.pack_footer(section_id)
