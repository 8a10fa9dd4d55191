"""GuestSpec: the built-in guest's RAM and how it changes, as one line of text.

::

    dense,size=1GiB,seed=7,fraction=0.3
    |     `-- key=value pairs, each optional
    `-- workload

The specification and a number of steps determine every byte of RAM (``workload.render``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from parallel_fixedram.core.errors import RequestError
from parallel_fixedram.core.ramblock import TARGET_PAGE_SIZE
from parallel_fixedram.core.units import GIB, MAX_SIZE, parse_size

_MAX_UINT64 = (1 << 64) - 1


class Workload(StrEnum):
    """What the guest writes, when it boots and afterwards."""

    ZERO = "zero"
    """Nothing, ever: RAM stays sparse."""
    DENSE = "dense"
    """Incompressible pages, from the first page on; later writes go to any of them at random."""
    RANDOM = "random"
    """Incompressible pages scattered over all of RAM; later writes go to any of them, never to other pages."""
    HOT = "hot"
    """Like dense, but nine in ten of the later writes go to a scattered twentieth of the pages."""
    SWEEP = "sweep"
    """Like dense, but later writes go through the pages in ascending order, again and again."""
    TEXT = "text"
    """Like dense, but the pages contain text, which compresses."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestSpec:
    """The built-in guest in a few numbers.

    Raises:
        RequestError: a number is out of range, or the size is not whole pages.
    """

    workload: Workload
    size: int = GIB
    """Bytes of RAM, a positive multiple of 4096."""
    seed: int = 0
    """0 to 2**64 - 1; determines contents and pages."""
    fraction: float | None = None
    """Share of the pages that are ever written, 0 to 1; None means half of them for ``random``, otherwise all. The
    workload ``zero`` ignores it."""
    steps: int | None = None
    """Steps after which a running guest idles; None for never."""
    rate: int = 0
    """Bytes that a running guest writes per second, on average; 0 for as many as it can."""

    def __post_init__(self) -> None:
        if not 0 < self.size <= MAX_SIZE or self.size % TARGET_PAGE_SIZE:
            raise RequestError(f"guest size must be a positive multiple of {TARGET_PAGE_SIZE} bytes, got {self.size}")
        if not 0 <= self.seed <= _MAX_UINT64:
            raise RequestError(f"guest seed must lie between 0 and 2**64 - 1, got {self.seed}")
        if self.fraction is not None and not 0 <= self.fraction <= 1:
            raise RequestError(f"guest fraction must lie between 0 and 1, got {self.fraction}")
        if self.steps is not None and self.steps < 0:
            raise RequestError(f"guest steps must not be negative, got {self.steps}")
        if self.rate < 0:
            raise RequestError(f"guest rate must not be negative, got {self.rate}")

    @property
    def pages(self) -> int:
        """Pages of RAM."""
        return self.size // TARGET_PAGE_SIZE

    @property
    def written_pages(self) -> int:
        """Pages that are not zero once the guest has booted; the others never change."""
        match self.workload, self.fraction:
            case Workload.ZERO, _:
                return 0
            case Workload.RANDOM, None:
                return (self.pages + 1) // 2
            case _, None:
                return self.pages
            case _, fraction:
                return round(self.pages * fraction)

    @classmethod
    def parse(cls, text: str) -> GuestSpec:
        """Parse ``WORKLOAD[,KEY=VALUE]...``; the keys are size, seed, fraction, steps and rate.

        Raises:
            RequestError: the workload or a key is unknown, a key is given twice, or a value is not valid.
        """
        name, *pairs = (part.strip() for part in text.split(","))
        try:
            workload = Workload(name)
        except ValueError:
            raise RequestError(f"unknown guest workload {name!r}, expected one of {', '.join(Workload)}") from None
        values: dict[str, Any] = {}
        for pair in pairs:
            key, equals, value = pair.partition("=")
            if key not in _PARSERS:
                raise RequestError(f"unknown guest key {key!r}, expected one of {', '.join(_PARSERS)}")
            if not equals or not value:
                raise RequestError(f"guest key {key!r} needs a value, as in {key}={_EXAMPLES[key]}")
            if key in values:
                raise RequestError(f"guest key {key!r} is given twice")
            values[key] = _PARSERS[key](value)
        return cls(workload=workload, **values)

    def to_json(self) -> dict[str, str | int | float | None]:
        """The specification for a report, with the number of written pages that results from ``fraction``."""
        return {**asdict(self), "workload": self.workload.value, "written_pages": self.written_pages}


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise RequestError(f"not a whole number: {text!r}") from None


def _share(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise RequestError(f"not a number: {text!r}, expected one between 0 and 1") from None


_PARSERS: dict[str, Callable[[str], int | float]] = {
    "size": parse_size,
    "seed": _whole,
    "fraction": _share,
    "steps": _whole,
    "rate": parse_size,
}
_EXAMPLES = {"size": "1GiB", "seed": "7", "fraction": "0.5", "steps": "100", "rate": "200MiB"}
