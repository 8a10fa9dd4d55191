"""Parameters of a case: what each may be, and its normal form.

A check takes a value as TOML has it and returns its normal form; the RequestError that it raises says what was
expected, and whoever calls it says where.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from parallel_fixedram.core.errors import RequestError
from parallel_fixedram.core.ramblock import TARGET_PAGE_SIZE
from parallel_fixedram.core.save_options import CaptureMode
from parallel_fixedram.core.units import parse_size
from parallel_fixedram.experiments import boot_sector
from parallel_fixedram.host.facts import memory_bytes
from parallel_fixedram.machines.builtin.spec import GuestSpec

AUTO = "auto"

_SHARE_OF_MEMORY = 256 << 20
"""Bytes that a share of memory is a multiple of: hosts of one kind differ by what their kernels keep."""

Check = Callable[[Any], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class QemuSpec:
    """A QEMU guest started from the boot sector."""

    size: int
    """Bytes of RAM."""
    data: float = 0.5
    """Share of RAM that it fills, from 1 MiB on."""
    ram: str = "memfd"
    """``memfd``: shared memory; ``huge``: the same on huge pages; ``private``: a plain ``-m``."""
    dirty_rate: int = 0
    """Bytes rewritten per second once it is full; 0: it sleeps."""
    hot: int = 0
    """Of what bytes, from 1 MiB on; 0: of all that it has filled."""
    at_random: bool = False
    """Whether it rewrites pages in no order, instead of going round."""
    fresh: bool = False
    """Whether every run has a guest of its own that has just booted, so that what is measured is its first save."""
    watched: bool = False
    """Whether what it gets done is counted around each run."""
    domain: bool = False
    """Whether libvirt starts it, as a domain."""

    @property
    def is_shared(self) -> bool:
        """Whether its main memory is a file that others can map."""
        return self.ram != "private"

    def __str__(self) -> str:
        rate = f",dirty_rate={self.dirty_rate >> 20}MiB" if self.dirty_rate else ""
        hot = f",hot={self.hot >> 20}MiB" if self.hot else ""
        words = "".join(f",{name}" for name in ("at_random", "fresh", "watched", "domain") if getattr(self, name))
        return f"size={self.size >> 20}MiB,data={self.data:g},ram={self.ram}{rate}{hot}{words}"

    @property
    def data_bytes(self) -> int:
        """What it fills."""
        return boot_sector.filled_bytes(self.size, self.data)

    def boot_image(self, seed: int) -> bytes:
        """The disk that it boots from (boot_sector.fill_image)."""
        return boot_sector.fill_image(
            size=self.size,
            share=self.data,
            dirty_rate=self.dirty_rate,
            hot=self.hot or None,
            at_random=self.at_random,
            seed=seed,
        )

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return dataclasses.asdict(self)


def whole(least: int, most: int) -> Check:
    """A whole number between the two, both included."""

    def check(value: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise RequestError(f"expected a whole number from {least} to {most}")
        return value

    return check


def _share(value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value <= 1:
        raise RequestError("expected a number above 0 and up to 1")
    return float(value)


def one_of(*names: str) -> Check:
    """One of these words."""

    def check(value: Any) -> str:
        if value not in names or not isinstance(value, str):
            raise RequestError(f"expected one of {', '.join(names)}")
        return value

    return check


def _yes_or_no(value: Any) -> bool:
    if not isinstance(value, bool):
        raise RequestError("expected true or false")
    return value


def _or_auto(check: Check) -> Check:
    def either(value: Any) -> Any:
        try:
            return AUTO if value == AUTO else check(value)
        except RequestError as error:
            raise RequestError(f"{error.message}, or {AUTO!r}") from error

    return either


def any_text(value: Any) -> str:
    """Any text that is not blank."""
    if not isinstance(value, str) or not value.strip():
        raise RequestError("expected a text")
    return value


def _size(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    if not isinstance(value, str):
        raise RequestError('expected a size such as "64MiB"')
    return parse_size(value)


def _memory(value: Any) -> int:
    """A size, or the share of this host's memory that ``"1/8 of memory"`` is: whole pieces, no more than is filled."""
    match = re.fullmatch(r"1/([1-9]\d{0,3}) of memory", value) if isinstance(value, str) else None
    if match is None:
        return _size(value)
    total = memory_bytes("MemTotal")
    if total is None:
        raise RequestError("this system does not tell how much memory it has: give a size")
    share = min(total // int(match[1]), boot_sector.LOW_RAM)
    return max(share // _SHARE_OF_MEMORY, 1) * _SHARE_OF_MEMORY


def _guest(value: Any) -> str:
    GuestSpec.parse(any_text(value))
    return str(value)


def _qemu(value: Any) -> QemuSpec:
    assert isinstance(value, QemuSpec)  # scenario.py has made it of a table
    return value


def _block_size(value: Any) -> int:
    size = _size(value)
    if size % TARGET_PAGE_SIZE or not size:
        raise RequestError(f"expected a multiple of {TARGET_PAGE_SIZE} bytes")
    return size


PARAMETERS: Mapping[str, Check] = {
    "guest": _guest,
    "qemu": _qemu,
    "channels": whole(1, 256),
    "direct_io": one_of("on", "off", AUTO),
    "gap_pages": _or_auto(whole(0, 1 << 20)),
    "shard_pages": _or_auto(whole(64, 1 << 24)),
    "queue_depth": _or_auto(whole(0, 4096)),
    "file_system": one_of("folder", "tmpfs", "xfs", "ext4"),
    "calibrate": _yes_or_no,
    "capture": one_of(*CaptureMode),
    "durability": one_of("full", "none"),
    "cache": one_of("keep", "drop"),
    "block_size": _block_size,
    "dirty": _share,
    "rounds": whole(2, 64),
    "count": whole(1, 64),
    "shared": _yes_or_no,
    "touch": _yes_or_no,
    "live": _yes_or_no,
    "image_format": one_of("raw", "sparse", "ours"),
}
"""Every parameter but ``way``, in the order in which a case's name lists them."""

QEMU_PARAMETERS: Mapping[str, Check] = {
    "size": _memory,
    "data": _share,
    "ram": one_of("memfd", "huge", "private"),
    "dirty_rate": _size,
    "hot": _size,
    "at_random": _yes_or_no,
    "fresh": _yes_or_no,
    "watched": _yes_or_no,
    "domain": _yes_or_no,
}
"""Of the table ``qemu``."""
