"""Save a virtual machine's RAM at fixed file offsets with parallel workers; restore, clone, verify and compare it.

::

    from parallel_fixedram import open_guest, save, verify

    with open_guest("dense,size=256MiB") as guest:
        report = save(guest, "/tmp/guest.mapped-ram", channels=2, experimental_multifd=True)
    print(report.seconds.write, verify("/tmp/guest.mapped-ram").ok)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from parallel_fixedram.app import (
        Destination,
        DirectIO,
        Durability,
        GuestSpec,
        Image,
        RamFile,
        diff,
        open_guest,
        open_image,
        open_qemu,
        open_ram,
        plan,
        restore,
        save,
        verify,
    )
    from parallel_fixedram.boot import clone_guests, list_guests, restore_guest, stop_guests, verify_by_loading
    from parallel_fixedram.core.errors import (
        CapabilityError,
        ContentsDiffer,
        DurabilityError,
        FixedRamError,
        FormatError,
        HostError,
        MachineError,
        RequestError,
        WorkerError,
    )
    from parallel_fixedram.core.profiles import Profile
    from parallel_fixedram.core.protocols import Channel, DirtySource, GuestBlock, Machine, PageSource
    from parallel_fixedram.core.ramblock import PageRange, RAMBlock
    from parallel_fixedram.core.reports.boot import BootReport
    from parallel_fixedram.core.reports.diff import DiffReport
    from parallel_fixedram.core.reports.guests import GuestsReport
    from parallel_fixedram.core.reports.plan import PlanReport
    from parallel_fixedram.core.reports.restore import RestoreReport
    from parallel_fixedram.core.reports.save import SaveReport
    from parallel_fixedram.core.reports.verify import VerifyReport
    from parallel_fixedram.core.schemas import from_json, to_json

__all__ = [
    "BootReport",
    "CapabilityError",
    "Channel",
    "ContentsDiffer",
    "Destination",
    "DiffReport",
    "DirectIO",
    "DirtySource",
    "Durability",
    "DurabilityError",
    "FixedRamError",
    "FormatError",
    "GuestBlock",
    "GuestSpec",
    "GuestsReport",
    "HostError",
    "Image",
    "Machine",
    "MachineError",
    "PageRange",
    "PageSource",
    "PlanReport",
    "Profile",
    "RAMBlock",
    "RamFile",
    "RequestError",
    "RestoreReport",
    "SaveReport",
    "VerifyReport",
    "WorkerError",
    "clone_guests",
    "diff",
    "from_json",
    "list_guests",
    "open_guest",
    "open_image",
    "open_qemu",
    "open_ram",
    "plan",
    "restore",
    "restore_guest",
    "save",
    "stop_guests",
    "to_json",
    "verify",
    "verify_by_loading",
]

_HOMES = {
    "app": (
        "Destination",
        "DirectIO",
        "Durability",
        "GuestSpec",
        "Image",
        "RamFile",
        "diff",
        "open_guest",
        "open_image",
        "open_qemu",
        "open_ram",
        "plan",
        "restore",
        "save",
        "verify",
    ),
    "boot": ("clone_guests", "list_guests", "restore_guest", "stop_guests", "verify_by_loading"),
    "core.profiles": ("Profile",),
    "core.errors": (
        "CapabilityError",
        "ContentsDiffer",
        "DurabilityError",
        "FixedRamError",
        "FormatError",
        "HostError",
        "MachineError",
        "RequestError",
        "WorkerError",
    ),
    "core.protocols": ("Channel", "DirtySource", "GuestBlock", "Machine", "PageSource"),
    "core.ramblock": ("PageRange", "RAMBlock"),
    "core.reports.boot": ("BootReport",),
    "core.reports.diff": ("DiffReport",),
    "core.reports.guests": ("GuestsReport",),
    "core.reports.plan": ("PlanReport",),
    "core.reports.restore": ("RestoreReport",),
    "core.reports.save": ("SaveReport",),
    "core.reports.verify": ("VerifyReport",),
    "core.schemas": ("from_json", "to_json"),
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for, so that ``--help`` does not wait for numpy."""
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
