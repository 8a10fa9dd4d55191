"""What writes cost, and how pages should be written therefore.

A write of a run costs ``a + b * bytes``. What ``a`` and ``b`` are depends on the device, the file system, whether the
page cache takes part, and how many channels write at once; they are measured (``engine/tuning/``). A device may
say that a direct write is done when it is in a cache that a power cut empties: what the sync at the end takes follows
calls and bytes, too. A gap between two runs is worth bridging when its bytes cost less than a second call:
``b * bytes <= a``. Every gap can be judged by itself, so this rule is the best there is under this model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parallel_fixedram.core.bitmap import WORD_PAGES, PageBitmap
from parallel_fixedram.core.shards import WINDOW_PAGES

MAX_GAP_PAGES = 255
"""A gap is never larger than this, whatever the model says: half a window of direct writes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallCost:
    """What writing takes, all channels together: ``call`` for each run and ``byte`` for each byte."""

    call: float
    """Seconds a write call adds."""
    byte: float
    """Seconds a byte adds, above 0."""

    def __post_init__(self) -> None:
        if not (0 <= self.call < math.inf and 0 < self.byte < math.inf):
            raise ValueError(f"a call of {self.call} seconds and a byte of {self.byte} seconds cannot be")

    def __add__(self, other: CallCost) -> CallCost:
        """What both take, one after the other."""
        return CallCost(call=self.call + other.call, byte=self.byte + other.byte)

    def seconds(self, calls: int, size: int) -> float:
        """How long ``calls`` writes of ``size`` bytes in all take."""
        return self.call * calls + self.byte * size

    def gap_pages(self, page_size: int) -> int:
        """The longest gap that is cheaper to bridge than to leave out, in pages of ``page_size`` bytes."""
        return min(int(self.call / (self.byte * page_size)), MAX_GAP_PAGES)

    @classmethod
    def fit(cls, small: tuple[int, int, float], large: tuple[int, int, float]) -> CallCost:
        """The cost of which two measurements tell, each (calls, bytes, seconds), the second with more bytes a call.

        Measurements are noisy: neither number becomes negative.
        """
        (calls, size, seconds), (large_calls, large_size, large_seconds) = small, large
        per_call, per_large = seconds / calls, large_seconds / large_calls
        bytes_each, large_each = size / calls, large_size / large_calls
        byte = max((per_large - per_call) / (large_each - bytes_each), 1e-12)
        return cls(call=max(per_call - byte * bytes_each, 0.0), byte=byte)


NO_COST = CallCost(call=0.0, byte=1e-30)
"""As little as a cost can be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceModel:
    """What a host and a folder on it can do."""

    source: str
    """Where the numbers come from: ``measured``, ``cached`` (measured by an earlier command) or ``assumed``."""
    direct: Mapping[int, CallCost]
    """By number of channels: bypassing the page cache, into allocated space. Empty where the file system refuses."""
    buffered: Mapping[int, CallCost]
    """By number of channels: into the page cache."""
    stable: CallCost
    """One channel: into the page cache and from there to stable storage."""
    flush: CallCost
    """What direct writes add to the sync at the end: hardly anything, unless the device has a volatile cache."""
    sync: float
    """Seconds of a sync that finds next to nothing to do."""
    direct_sync: float
    """Seconds of the first sync after direct writes, however few they were."""
    buffered_sync: float
    """The same after writes into the page cache."""
    start: float
    """Seconds until workers are there."""
    reserve: float
    """Seconds to reserve space for a run, which direct writes need."""
    overlap: float
    """How much of the shorter one is hidden where direct writes and computing go on at the same time, 0 to 1."""
    window: float
    """Seconds one worker takes to look at ``WINDOW_PAGES`` of RAM that hold something, besides its pages."""
    direct_window: float
    """Seconds one worker takes to begin direct writes of a window of RAM, besides its runs and their bytes."""
    buffered_window: float
    """The same for writes into the page cache."""
    scan_byte: float
    """Seconds one worker takes to look at a byte of RAM that it has not mapped yet."""
    digest_page: float
    """Seconds one worker takes for the digest of a page."""
    hash_page: float
    """Seconds one worker takes to find out whether a page changed."""

    def __post_init__(self) -> None:
        if 1 not in self.buffered or (self.direct and 1 not in self.direct):
            raise ValueError("one channel was not measured")
        others = [getattr(self, name) for name in _NUMBERS]
        if not all(0 <= each < math.inf for each in others) or self.overlap > 1:
            raise ValueError(f"one of {', '.join(map(str, others))} cannot be")

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return {
            "source": self.source,
            "direct": {str(channels): _cost_json(cost) for channels, cost in self.direct.items()},
            "buffered": {str(channels): _cost_json(cost) for channels, cost in self.buffered.items()},
            "stable": _cost_json(self.stable),
            "flush": _cost_json(self.flush),
            **{name: getattr(self, name) for name in _NUMBERS},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], source: str) -> DeviceModel:
        """The reverse of ``to_json``.

        By hand: every save reads what was measured before, and ``plain`` takes longer to import than that.

        Raises:
            KeyError, OverflowError, TypeError, ValueError: it is not what ``to_json`` makes.
        """
        return cls(
            source=source,
            direct={int(channels): _cost(cost) for channels, cost in dict(data["direct"]).items()},
            buffered={int(channels): _cost(cost) for channels, cost in dict(data["buffered"]).items()},
            stable=_cost(data["stable"]),
            flush=_cost(data["flush"]),
            **{name: float(data[name]) for name in _NUMBERS},
        )


_NUMBERS = tuple(each.name for each in fields(DeviceModel) if each.type == "float")


def _cost_json(cost: CallCost) -> dict[str, float]:
    return {"call": cost.call, "byte": cost.byte}


def _cost(data: Mapping[str, Any]) -> CallCost:
    return CallCost(call=float(data["call"]), byte=float(data["byte"]))


ASSUMED = DeviceModel(
    source="assumed",
    direct={channels: CallCost(call=12e-6, byte=0.5e-9) for channels in (1, 2, 4)},
    buffered={channels: CallCost(call=4e-6, byte=0.2e-9) for channels in (1, 2, 4)},
    stable=CallCost(call=12e-6, byte=0.7e-9),
    flush=CallCost(call=0.0, byte=0.01e-9),
    sync=2e-3,
    direct_sync=5e-3,
    buffered_sync=5e-3,
    start=0.03,
    reserve=8e-6,
    overlap=0.5,
    window=100e-6,
    direct_window=100e-6,
    buffered_window=50e-6,
    scan_byte=0.12e-9,
    digest_page=0.4e-6,
    hash_page=0.3e-6,
)
"""For what is too small to measure for: one solid-state disk on a virtual machine, rounded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a save has to write, as far as it can be known before any page is looked at."""

    pages: int
    """Pages that may hold something."""
    runs: int
    """Maximal runs of such pages."""
    gaps: NDArray[np.int64]
    """Length of every gap between two runs of a block, pages, ascending."""
    page_size: int
    windows: int = 0
    """Pieces of RAM of ``WINDOW_PAGES`` that hold such a page."""

    @classmethod
    def of(cls, data: Sequence[PageBitmap], page_size: int) -> Work:
        """The work that data maps stand for, one bitmap a block."""
        runs = [bitmap.runs() for bitmap in data]
        gaps = [each[1:, 0] - each[:-1, 0] - each[:-1, 1] for each in runs]
        return cls(
            pages=sum(bitmap.count() for bitmap in data),
            runs=sum(len(each) for each in runs),
            gaps=np.sort(np.concatenate([*gaps, np.empty(0, np.int64)])),
            page_size=page_size,
            windows=sum(_windows(bitmap) for bitmap in data),
        )

    @property
    def size(self) -> int:
        """Bytes of the pages that may hold something."""
        return self.pages * self.page_size

    def merged(self, gap_pages: int, window_pages: int) -> tuple[int, int]:
        """How many writes, and of how many bytes, are left when gaps of up to ``gap_pages`` are bridged.

        Args:
            gap_pages: longest gap that is.
            window_pages: longest write.
        """
        # they ascend, so those that are bridged come first
        joined = int(np.searchsorted(self.gaps, gap_pages, "right"))
        pages = self.pages + int(self.gaps[:joined].sum())
        return self.runs - joined + pages // window_pages, pages * self.page_size


def _windows(bitmap: PageBitmap) -> int:
    """How many pieces of WINDOW_PAGES have a bit set."""
    pieces = np.flatnonzero(bitmap.words) // (WINDOW_PAGES // WORD_PAGES)
    return int(np.count_nonzero(np.diff(pieces))) + bool(len(pieces))  # they ascend
