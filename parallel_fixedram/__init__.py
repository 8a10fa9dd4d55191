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
    from parallel_fixedram.core.boot_options import DiskChoice
    from parallel_fixedram.core.clone_options import Identity
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
    from parallel_fixedram.core.reports.boot import BootReport
    from parallel_fixedram.core.reports.clean import CleanReport
    from parallel_fixedram.core.reports.diff import DiffReport
    from parallel_fixedram.core.reports.disks import DisksReport
    from parallel_fixedram.core.reports.doctor import DoctorReport
    from parallel_fixedram.core.reports.guests import GuestsReport
    from parallel_fixedram.core.reports.inspect import InspectQemuReport, InspectReport
    from parallel_fixedram.core.reports.libvirt import InspectLibvirtReport
    from parallel_fixedram.core.reports.plan import PlanReport
    from parallel_fixedram.core.reports.restore import RestoreReport
    from parallel_fixedram.core.reports.save import SaveReport
    from parallel_fixedram.core.reports.try_capture import TryCaptureReport
    from parallel_fixedram.core.reports.verify import VerifyReport
    from parallel_fixedram.core.save_options import (
        Cache,
        CaptureMode,
        Capturing,
        DirectIO,
        Disks,
        DisksMode,
        Durability,
        Gate,
        Publishing,
        Writing,
    )
    from parallel_fixedram.core.schemas import from_json, to_json
    from parallel_fixedram.verbs.clean import clean
    from parallel_fixedram.verbs.clone import clone
    from parallel_fixedram.verbs.diff import diff
    from parallel_fixedram.verbs.disks import commit_disks, list_disks
    from parallel_fixedram.verbs.doctor import doctor
    from parallel_fixedram.verbs.guests import list_guests, stop_guests
    from parallel_fixedram.verbs.inspect import inspect, inspect_qemu
    from parallel_fixedram.verbs.open import (
        GuestSpec,
        Image,
        RamFile,
        open_guest,
        open_image,
        open_libvirt,
        open_qemu,
        open_ram,
    )
    from parallel_fixedram.verbs.plan import plan
    from parallel_fixedram.verbs.restore import Destination, restore
    from parallel_fixedram.verbs.restore_guest import restore_guest
    from parallel_fixedram.verbs.save import save
    from parallel_fixedram.verbs.try_capture import try_capture
    from parallel_fixedram.verbs.verify import verify
    from parallel_fixedram.verbs.verify_by_loading import verify_by_loading

__all__ = [
    "BootReport",
    "Cache",
    "CapabilityError",
    "CaptureMode",
    "Capturing",
    "Channel",
    "CleanReport",
    "ContentsDiffer",
    "Destination",
    "DiffReport",
    "DirectIO",
    "DirtySource",
    "DiskChoice",
    "Disks",
    "DisksMode",
    "DisksReport",
    "DoctorReport",
    "Durability",
    "DurabilityError",
    "FixedRamError",
    "FormatError",
    "Gate",
    "GuestBlock",
    "GuestSpec",
    "GuestsReport",
    "HostError",
    "Identity",
    "Image",
    "InspectLibvirtReport",
    "InspectQemuReport",
    "InspectReport",
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
    "TryCaptureReport",
    "VerifyReport",
    "WorkerError",
    "Writing",
    "clean",
    "clone",
    "commit_disks",
    "diff",
    "doctor",
    "from_json",
    "inspect",
    "inspect_qemu",
    "list_disks",
    "list_guests",
    "open_guest",
    "open_image",
    "open_libvirt",
    "open_qemu",
    "open_ram",
    "plan",
    "restore",
    "restore_guest",
    "save",
    "stop_guests",
    "to_json",
    "try_capture",
    "verify",
    "verify_by_loading",
]

_HOMES = {
    "core.boot_options": ("DiskChoice",),
    "core.clone_options": ("Identity",),
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
    "core.profiles": ("Profile",),
    "core.protocols": ("Channel", "DirtySource", "GuestBlock", "Machine", "PageSource"),
    "core.ramblock": ("PageRange", "RAMBlock"),
    "core.reports.boot": ("BootReport",),
    "core.reports.clean": ("CleanReport",),
    "core.reports.diff": ("DiffReport",),
    "core.reports.disks": ("DisksReport",),
    "core.reports.doctor": ("DoctorReport",),
    "core.reports.guests": ("GuestsReport",),
    "core.reports.inspect": ("InspectQemuReport", "InspectReport"),
    "core.reports.libvirt": ("InspectLibvirtReport",),
    "core.reports.plan": ("PlanReport",),
    "core.reports.restore": ("RestoreReport",),
    "core.reports.save": ("SaveReport",),
    "core.reports.try_capture": ("TryCaptureReport",),
    "core.reports.verify": ("VerifyReport",),
    "core.save_options": (
        "Cache",
        "CaptureMode",
        "Capturing",
        "DirectIO",
        "Disks",
        "DisksMode",
        "Durability",
        "Gate",
        "Publishing",
        "Writing",
    ),
    "core.schemas": ("from_json", "to_json"),
    "verbs.clean": ("clean",),
    "verbs.clone": ("clone",),
    "verbs.diff": ("diff",),
    "verbs.disks": ("commit_disks", "list_disks"),
    "verbs.doctor": ("doctor",),
    "verbs.guests": ("list_guests", "stop_guests"),
    "verbs.inspect": ("inspect", "inspect_qemu"),
    "verbs.open": (
        *("GuestSpec", "Image", "RamFile"),
        *("open_guest", "open_image", "open_libvirt", "open_qemu", "open_ram"),
    ),
    "verbs.plan": ("plan",),
    "verbs.restore": ("Destination", "restore"),
    "verbs.restore_guest": ("restore_guest",),
    "verbs.save": ("save",),
    "verbs.try_capture": ("try_capture",),
    "verbs.verify": ("verify",),
    "verbs.verify_by_loading": ("verify_by_loading",),
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for, so that ``--help`` does not wait for numpy."""
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
