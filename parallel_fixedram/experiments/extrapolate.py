"""A save of a size, and with channels and devices, that are not at hand: simulated, never measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from parallel_fixedram.core.ramblock import TARGET_PAGE_SIZE
from parallel_fixedram.experiments.calibrate_simulation import AUTO_GAP_PAGES, WINDOW_PAGES_OF
from parallel_fixedram.experiments.shard_calls import large_guest
from parallel_fixedram.experiments.simulate import Device, Host, Simulated, simulate


@dataclass(frozen=True, slots=True, kw_only=True)
class HypotheticalSave:
    """The save that is asked about."""

    ram: int
    """Bytes, all of them data."""
    channels: int
    """The most; the curve also has all powers of two below."""
    direct: bool
    device: Device
    """With the number of devices that is asked about."""
    host: Host
    dirty: float = 1.0
    """Share of the pages to write, above 0 and up to 1, scattered."""

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        names = ("call_seconds", "byte_seconds", "queue_depth", "count", "stripe_bytes")
        host = ("processors", "scan_byte_seconds", "copy_byte_seconds", "copy_call_seconds", "digest_byte_seconds")
        return {
            "ram": self.ram,
            "dirty": self.dirty,
            "direct_io": self.direct,
            "device": {name: getattr(self.device, name) for name in names},
            "host": {name: getattr(self.host, name) for name in (*host, "lock")},
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Extrapolated:
    """One point of the curve."""

    channels: int
    simulated: Simulated
    share: float
    """Which part of the save was simulated call by call; the rest is assumed to be like it."""

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {
            "channels": self.channels,
            "seconds": self.simulated.seconds,
            "busy": dict(self.simulated.busy),
            "bottleneck": self.simulated.bottleneck,
            "share_simulated": self.share,
        }


def extrapolate(target: HypotheticalSave) -> list[Extrapolated]:
    """The simulated save with 1, 2, 4 ... and ``target.channels`` channels."""
    return list(_points(target, _powers(target.channels)))


def _powers(most: int) -> list[int]:
    return [*(1 << bits for bits in range(most.bit_length()) if 1 << bits < most), most]


def _points(target: HypotheticalSave, numbers: Sequence[int]) -> Iterator[Extrapolated]:
    for channels in numbers:
        workload = large_guest(
            -(-target.ram // TARGET_PAGE_SIZE),
            target.dirty,
            channels=channels,
            max_gap_pages=AUTO_GAP_PAGES[target.direct],
            window_pages=WINDOW_PAGES_OF[target.direct],
        )
        found = simulate(workload, channels=channels, device=target.device, host=target.host)
        yield Extrapolated(channels=channels, simulated=found, share=workload.share)


def larger(device: Device, host: Host, *, devices: int, processors: int) -> tuple[Device, Host]:
    """The same devices and processors, but so many of them."""
    return replace(device, count=devices), replace(host, processors=processors)
