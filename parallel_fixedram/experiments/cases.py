"""Cases: one way on one source with one value for every parameter; and which parameters each way knows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from parallel_fixedram.core.ramblock import TARGET_PAGE_SIZE
from parallel_fixedram.core.units import MIB
from parallel_fixedram.experiments.parameters import AUTO, PARAMETERS, QemuSpec
from parallel_fixedram.machines.builtin.spec import GuestSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One way on one source with one value for every parameter that the way knows; None for those it does not."""

    way: str
    guest: str | None = None
    """A specification of the built-in guest."""
    qemu: QemuSpec | None = None
    channels: int | None = None
    direct_io: str | None = None
    gap_pages: int | str | None = None
    shard_pages: int | str | None = None
    queue_depth: int | str | None = None
    """Direct writes in flight of each worker; 0 for one by one."""
    file_system: str | None = None
    calibrate: bool | None = None
    """Whether what writes cost is measured anew before each save, which is not part of its time."""
    capture: str | None = None
    """How the file comes to hold one instant of a QEMU guest that runs."""
    durability: str | None = None
    cache: str | None = None
    block_size: int | None = None
    """Bytes of a write."""
    dirty: float | None = None
    """Share of the pages that are dirtied before a second round, which alone is timed."""
    rounds: int | None = None
    """Rounds that a live save sees at most."""
    count: int | None = None
    """Guests started from the file."""
    shared: bool | None = None
    """Whether the guest is given shared memory that workers of ours fill."""
    touch: bool | None = None
    """Whether all RAM of the guest that was started is read afterwards, and then once more."""
    live: bool | None = None
    """Whether the guest runs on until QEMU itself stops it, at the end."""
    image_format: str | None = None
    """Of a libvirt save image: libvirt's name for it, or ``ours``."""

    @property
    def own_guest(self) -> bool:
        """Whether each run has a guest of its own instead of one that all cases of the source take turns with."""
        return self.qemu.fresh if self.qemu else self.way == "ours" and self.rounds is not None

    @property
    def id(self) -> str:
        """Its name: way, source, channels, and whatever is not as by default."""
        defaults = WAYS[self.way].defaults
        words = [self.way]
        for name, value in self._values():
            if name in ("guest", "qemu", "channels") or value != defaults[name]:
                words.append(f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}")
        return " ".join(words)

    @property
    def source(self) -> str:
        """What tells guests apart: cases with the same one share a guest."""
        return f"guest {self.guest}" if self.guest is not None else f"qemu {self.qemu}"

    @property
    def guest_spec(self) -> GuestSpec:
        """The built-in guest; only where there is one."""
        assert self.guest is not None
        return GuestSpec.parse(self.guest)

    @property
    def ram_bytes(self) -> int:
        """Bytes of RAM."""
        return self.qemu.size if self.qemu else self.guest_spec.size

    @property
    def data_bytes(self) -> int:
        """Bytes that are not zero, before any later writes."""
        return self.qemu.data_bytes if self.qemu else self.guest_spec.written_pages * TARGET_PAGE_SIZE

    def parameters(self) -> dict[str, Any]:
        """Every value in effect, as a JSON object."""
        found = {name: value.to_json() if isinstance(value, QemuSpec) else value for name, value in self._values()}
        return {"way": self.way, **found}

    def _values(self) -> Iterator[tuple[str, Any]]:
        for name in PARAMETERS:
            if (value := getattr(self, name)) is not None:
                yield name, value


@dataclass(frozen=True, slots=True, kw_only=True)
class WayRules:
    """What a way can be asked for."""

    sources: tuple[str, ...]
    """``guest``, ``qemu`` or both."""
    defaults: Mapping[str, Any]
    """The further parameters that it knows, and what they are by default."""
    direct_io: tuple[str, ...] = ("on", "off")


OF_A_DOMAIN = ("ours", "pause-floor", "virsh-save", "virsh-restore")
"""Ways that a domain of libvirt can be saved or brought back in."""

BOOTS = ("restore", "clone", "qemu-load")
"""Ways from a file to running guests: what is written before their time begins is the file."""

FROM_A_FILE = (*BOOTS, "verify")
"""Ways that need a file first, which is written once and is no part of their time."""

STARTS = (*BOOTS, "virsh-restore")
"""Ways whose time ends when guests run."""

NO_SAVES = (*STARTS, "verify")
"""Ways whose time is not about what they write."""

_FILE = {"file_system": "folder", "cache": "keep"}
_NAIVE = {**_FILE, "direct_io": "off"}
_VIRSH = {**_NAIVE, "channels": 1, "image_format": "sparse"}

WAYS: Mapping[str, WayRules] = {
    "ours": WayRules(
        sources=("guest", "qemu"),
        defaults={
            **_FILE,
            "channels": 1,
            "direct_io": AUTO,
            "gap_pages": AUTO,
            "shard_pages": AUTO,
            "queue_depth": AUTO,
            "calibrate": False,
            "capture": AUTO,
            "durability": "full",
            "dirty": None,
            "rounds": None,
        },
        direct_io=("on", "off", AUTO),
    ),
    "ours-threads": WayRules(sources=("guest",), defaults={**_NAIVE, "channels": 1}),
    "page-by-page": WayRules(sources=("guest",), defaults=_NAIVE),
    "sequential": WayRules(sources=("guest",), defaults=_FILE),
    "fio": WayRules(sources=("guest", "qemu"), defaults={**_NAIVE, "channels": 1, "block_size": MIB}),
    "fio-pages": WayRules(sources=("guest",), defaults={**_NAIVE, "queue_depth": 64}),
    "qemu-file": WayRules(sources=("qemu",), defaults={**_FILE, "rounds": None, "live": False}),
    "qemu-mapped-ram": WayRules(sources=("qemu",), defaults={**_FILE, "rounds": None, "live": False}),
    "qemu-multifd": WayRules(sources=("qemu",), defaults={**_FILE, "channels": 2, "live": False}),
    "qemu-multifd-direct": WayRules(sources=("qemu",), defaults={**_FILE, "channels": 2, "live": False}),
    "qemu-background-snapshot": WayRules(sources=("qemu",), defaults=_FILE),
    "restore": WayRules(sources=("qemu",), defaults={**_FILE, "channels": 1, "shared": False, "touch": False}),
    "clone": WayRules(sources=("qemu",), defaults={**_FILE, "count": 1, "touch": False}),
    "qemu-load": WayRules(sources=("qemu",), defaults={**_FILE, "channels": 1, "direct_io": "off", "touch": False}),
    "verify": WayRules(sources=("guest", "qemu"), defaults=_FILE),
    "virsh-save": WayRules(sources=("qemu",), defaults=_VIRSH),
    "virsh-restore": WayRules(sources=("qemu",), defaults=_VIRSH),
    "pause-floor": WayRules(sources=("qemu",), defaults={}),
    "scan": WayRules(sources=("guest",), defaults={}),
    "copy": WayRules(sources=("guest",), defaults={}),
}
"""Every way, and which parameters it knows."""
