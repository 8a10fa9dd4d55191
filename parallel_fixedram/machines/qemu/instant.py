"""Instant: whether everything that was read of a guest between ``stop`` and ``cont`` belongs to one instant.

While we hold a guest, other monitors, QEMU itself, or a request by the guest just before it stopped may act on it. QEMU
reports that by events, all of which arrive before the answer to our next command::

    what is reported                                   the instant     the guest
    RESUME: somebody let it go on                      torn            belongs to them from then on
    RESET: somebody reset it                           torn            goes on, from its reset
    SHUTDOWN; a panic or a watchdog that stops it      void for good   stays as it is: it was going to stop anyway
    a run state that our stop does not lead to         void for good   stays as it is: a migration took it away
    what does not concern memory or devices            holds           goes on
    anything else                                      torn            goes on

A stop by a failed disk request needs no case here: the request is part of the device state, and QEMU repeats it, and
stops again, when the guest goes on. ``loadvm`` in a human monitor is not reported at all.
Source: QEMU qapi/*.json; system/runstate.c (main_loop_should_exit, qemu_system_guest_panicked); system/cpus.c.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from parallel_fixedram.machines.qemu.discovery import BUSY, RUNNING

_HELD = ("paused", "prelaunch")
"""Run states after our ``stop``, and after a reset that follows it."""

HARMLESS = frozenset(
    (
        *("ACPI_DEVICE_OST", "BALLOON_CHANGE", "HV_BALLOON_STATUS_REPORT", "GUEST_CRASHLOADED"),
        *("POWERDOWN", "RTC_CHANGE", "SUSPEND", "SUSPEND_DISK", "VSERPORT_CHANGE", "NIC_RX_FILTER_CHANGED"),
        *("BLOCK_EXPORT_DELETED", "BLOCK_IMAGE_CORRUPTED", "BLOCK_IO_ERROR", "BLOCK_WRITE_THRESHOLD"),
        *("BLOCK_JOB_CANCELLED", "BLOCK_JOB_COMPLETED", "BLOCK_JOB_ERROR", "BLOCK_JOB_PENDING", "BLOCK_JOB_READY"),
        *("DEVICE_TRAY_MOVED", "DEVICE_UNPLUG_GUEST_ERROR", "MEM_UNPLUG_ERROR", "DUMP_COMPLETED", "MIGRATION_PASS"),
        *("NETDEV_STREAM_CONNECTED", "NETDEV_STREAM_DISCONNECTED", "PR_MANAGER_STATUS_CHANGED"),
        *("NETDEV_VHOST_USER_CONNECTED", "NETDEV_VHOST_USER_DISCONNECTED", "QUORUM_FAILURE", "QUORUM_REPORT_BAD"),
        *("SPICE_CONNECTED", "SPICE_DISCONNECTED", "SPICE_INITIALIZED", "SPICE_MIGRATE_COMPLETED"),
        *("VNC_CONNECTED", "VNC_DISCONNECTED", "VNC_INITIALIZED"),
    )
)
"""Events that leave memory and the set of devices as they were."""

_STOPPING_ACTIONS = ("pause", "poweroff", "shutdown", "exit-failure")
"""Actions after a panic or a watchdog that stop the guest for good (GuestPanicAction, WatchdogAction)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What happened to a guest while we held it."""

    torn: str = ""
    """What somebody did that makes what we read worthless, as a sentence; empty if it is one instant."""
    ours: bool
    """Whether it stands still because of us, so that we have to let it go on."""
    over: bool = False
    """Whether the guest came to its end, so that there is no point in trying again."""


def look_back(events: Sequence[Mapping[str, Any]], status: str, *, ours: bool, complete: bool = True) -> Held:
    """Judge the time from ``stop`` until now.

    Args:
        events: those since ``stop`` was answered, without HARMLESS ones, as QEMU sent them, in order.
        status: the run state now, queried after the last of them.
        ours: whether our ``stop`` stopped the guest.
        complete: whether no event was dropped.
    """
    torn = "" if complete else "more events arrived than could be kept"
    for event in events:
        name, data = str(event.get("event")), event.get("data") or {}
        if reason := _end_of_guest(name, data):
            return Held(torn=reason, ours=False, over=True)
        if name == "RESUME":
            torn, ours = "somebody let the guest go on", False
        elif name == "RESET":
            torn = torn or "somebody reset the guest"
        elif name == "JOB_STATUS_CHANGE":  # existing jobs do not count: stop itself pauses some
            torn = torn or ("somebody started a job" if data.get("status") == "created" else "")
        elif name != "STOP":  # RESUME and the run state tell whose stop it was
            torn = torn or f"QEMU reported {name}"
    if status in RUNNING:
        return Held(torn=torn or "somebody let the guest go on", ours=False)
    if status in BUSY or (ours and status not in _HELD):  # whatever caused this, it is no longer our stop
        return Held(torn=f"the guest's run state became {status!r}", ours=False, over=True)
    return Held(torn=torn, ours=ours)


def _end_of_guest(name: str, data: Mapping[str, Any]) -> str:
    """Why the guest stops for good, if the event says that it does; otherwise empty."""
    match name:
        case "SHUTDOWN":
            return f"the guest was shut down ({data.get('reason', 'no reason given')})"
        case "GUEST_PANICKED" if data.get("action") in _STOPPING_ACTIONS:
            return "the guest panicked"
        case "WATCHDOG" if data.get("action") in _STOPPING_ACTIONS:
            return "the guest's watchdog expired"
    return ""
