"""Devices whose cost is known: nothing is measured, and every choice can be foretold."""

from __future__ import annotations

from collections.abc import Mapping

from parallel_fixedram.core.cost import ASSUMED, NO_COST, CallCost, DeviceModel

Costs = Mapping[int, tuple[float, float]]
"""By number of channels: microseconds a call, nanoseconds a byte."""


def cost(call: float, byte: float) -> CallCost:
    """So many microseconds a call and so many nanoseconds a byte."""
    return CallCost(call=call * 1e-6, byte=byte * 1e-9)


def model(
    direct: Costs | None = None,
    buffered: Costs | None = None,
    stable: tuple[float, float] = (1, 1),
    *,
    flush: tuple[float, float] | None = None,
    sync: float = 0.0,
    first_sync: float = 0.0,
    start: float = 0.0,
    reserve: float = 0.0,
    overlap: float = 1.0,
    window: float = 0.0,
    written_window: float = 0.0,
    scan: float = 0.0,
    digest: float = 0.0,
    compare: float = 0.0,
    source: str = "told",
) -> DeviceModel:
    """A device; ``reserve`` is microseconds a run, ``scan`` nanoseconds a byte, other seconds are microseconds."""
    return DeviceModel(
        source=source,
        direct={channels: cost(*each) for channels, each in (direct or {}).items()},
        buffered={channels: cost(*each) for channels, each in (buffered or {1: (1, 1)}).items()},
        stable=cost(*stable),
        flush=cost(*flush) if flush else NO_COST,
        sync=sync * 1e-6,
        direct_sync=first_sync * 1e-6,
        buffered_sync=first_sync * 1e-6,
        start=start * 1e-6,
        overlap=overlap,
        window=window * 1e-6,
        direct_window=written_window * 1e-6,
        buffered_window=written_window * 1e-6,
        reserve=reserve * 1e-6,
        scan_byte=scan * 1e-9,
        digest_page=digest * 1e-6,
        hash_page=compare * 1e-6,
    )


CALLS_COST = model(direct={1: (100, 0.1)}, buffered={1: (1, 1)}, stable=(1, 1))
"""A call bypassing the page cache is dear, a byte is cheap: scattered pages belong in the page cache, runs do not."""

FOUR_PAY = model(
    direct={1: (4, 4), 2: (2, 2), 4: (1, 1)}, buffered={1: (4, 4), 2: (2, 2), 4: (1, 1)}, stable=(8, 8), reserve=1
)
"""On it four channels are four times as fast as one, however little there is to write."""


class ToldCosts:
    """What writes cost, told instead of measured: the same choice on every machine.

    Attributes:
        model: what is told.
        asked: for which folder, for how many bytes, and whether anew.
    """

    def __init__(self) -> None:
        self.model = ASSUMED
        self.asked: list[tuple[str, int, bool]] = []

    def __call__(self, folder: str, size: int, *, fresh: bool = False) -> DeviceModel:
        self.asked.append((folder, size, fresh))
        return self.model
