"""Save a virtual machine's RAM at fixed file offsets with parallel workers; restore, clone, verify and compare it.

::

    from parallel_fixedram import Gate, open_guest, save, verify

    with open_guest("dense,size=256MiB") as guest:
        report = save(guest, "/tmp/guest.mapped-ram", gate=Gate(channels=2, experimental_multifd=True))
    print(report.seconds.write, verify("/tmp/guest.mapped-ram").ok)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from parallel_fixedram.app import (
        Destination,
        GuestSpec,
        Image,
        RamFile,
        diff,
        open_guest,
        open_image,
        open_qemu,
        open_ram,
        restore,
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
    from parallel_fixedram.core.observer import Observer
    from parallel_fixedram.core.profiles import Profile
    from parallel_fixedram.core.protocols import Channel, DirtySource, GuestBlock, Machine, PageSource
    from parallel_fixedram.core.ramblock import PageRange, RAMBlock
    from parallel_fixedram.core.report import (
        BootReport,
        DiffReport,
        GuestsReport,
        PlanReport,
        RestoreReport,
        SaveReport,
        VerifyReport,
        from_json,
        to_json,
    )
    from parallel_fixedram.core.save_options import (
        Cache,
        CaptureMode,
        Capturing,
        DirectIO,
        Durability,
        Gate,
        Publishing,
        Writing,
    )
    from parallel_fixedram.verbs.plan import plan
    from parallel_fixedram.verbs.save import save

__all__ = [
    "BootReport",
    "Cache",
    "CapabilityError",
    "CaptureMode",
    "Capturing",
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
    "Gate",
    "GuestBlock",
    "GuestSpec",
    "GuestsReport",
    "HostError",
    "Image",
    "Machine",
    "MachineError",
    "Observer",
    "PageRange",
    "PageSource",
    "PlanReport",
    "Profile",
    "Publishing",
    "RAMBlock",
    "RamFile",
    "RequestError",
    "RestoreReport",
    "SaveReport",
    "VerifyReport",
    "WorkerError",
    "Writing",
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
        "GuestSpec",
        "Image",
        "RamFile",
        "diff",
        "open_guest",
        "open_image",
        "open_qemu",
        "open_ram",
        "restore",
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
    "core.observer": ("Observer",),
    "core.protocols": ("Channel", "DirtySource", "GuestBlock", "Machine", "PageSource"),
    "core.ramblock": ("PageRange", "RAMBlock"),
    "core.report": (
        "BootReport",
        "DiffReport",
        "GuestsReport",
        "PlanReport",
        "RestoreReport",
        "SaveReport",
        "VerifyReport",
        "from_json",
        "to_json",
    ),
    "core.save_options": (
        "Cache",
        "CaptureMode",
        "Capturing",
        "DirectIO",
        "Durability",
        "Gate",
        "Publishing",
        "Writing",
    ),
    "verbs.plan": ("plan",),
    "verbs.save": ("save",),
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for, so that ``--help`` does not wait for numpy."""
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
