"""How to write: channels, past the page cache or not, gaps and shards, chosen from what writes cost.

::

    Work (what there is to write) + DeviceModel (what it costs) + Situation (who waits) --choose--> Choice, and why

What was asked for is taken as it is; what was left open is whatever is predicted to be fastest: until the last page is
written in a live save, until a guest that is pre-copied goes on, else until everything is on stable storage.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from parallel_fixedram.core.cost import WORK_WINDOW_PAGES, CallCost, DeviceModel, Work
from parallel_fixedram.core.shards import MIN_SHARD_PAGES
from parallel_fixedram.core.units import format_count, format_size

CANDIDATES = (1, 2, 4)
"""Numbers of channels that are considered: past four the device decides (measured, and published for QEMU)."""

WORTH = 0.95
"""More channels have to be predicted to take at most this share of the time, or they are not worth their processes."""

ROOM_SHARE = 0.8
"""How much of what the page cache can take at once a save counts on: others write, too."""

WINDOW_PAGES_BUFFERED = 256
"""Pages tested and then written at a time: 1 MiB fits a core's cache, so that the copy finds them there."""
WINDOW_PAGES_DIRECT = 512
"""A direct write of 2 MiB is two requests of pages scattered over memory: 254 segments are all that one takes."""

SHARD_SECONDS = 0.03
"""How long a shard should take: what progress shows, what a lost worker costs, and how late another one may end."""
SHARDS_PER_WORKER = 16
"""At least so many, that all end at about the same time."""
MAX_SHARD_PAGES = 16384


class DirectIO(StrEnum):
    """Whether pages bypass the page cache."""

    ON = "on"
    """Always; an error where the file system refuses."""
    OFF = "off"
    AUTO = "auto"
    """Whatever is predicted to be faster; the page cache for a live save, whose last round is small."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What was asked for; None for what is to be chosen."""

    channels: int | None = 1
    most_channels: int = 1
    """Most that may be chosen."""
    why_most: str = ""
    """What forbids more."""
    direct_io: DirectIO = DirectIO.AUTO
    gap_pages: int | None = None
    shard_pages: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """What matters besides the amount of work."""

    waits: bool
    """Whether a guest runs, and will stand still while the last pages are written."""
    live: bool
    """Whether it runs while rounds of dirty pages are saved."""
    room: int
    """Bytes the page cache takes before the kernel slows writers down."""
    processors: int
    """How many workers can compute at once."""
    durable: bool = True
    """Whether the file is synced at the end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """How to write."""

    channels: int
    direct: bool
    gap_pages: int
    """Gaps of up to so many pages are written along."""
    shard_pages: int
    """Pages of a shard, about."""
    precopy: bool
    """Whether pages are written while the guest runs, and those that changed again while it waits."""
    write_seconds: float
    """Predicted: what writing the pages takes; with ``precopy``, from the moment the guest stands still."""
    stable_seconds: float
    """Predicted: until the file is on stable storage, or complete where it is not synced; digests included."""
    why: tuple[str, ...] = ()
    """A sentence for everything that was left open."""

    @property
    def window_pages(self) -> int:
        """Pages that are tested and then written at a time."""
        return WINDOW_PAGES_DIRECT if self.direct else WINDOW_PAGES_BUFFERED


def choose(wishes: Wishes, work: Work, model: DeviceModel, situation: Situation) -> Choice:
    """The fastest of what is left open, as the model predicts.

    Whether the file system takes direct I/O is in the model; one that is asked for has to be in it.
    """
    channels = [wishes.channels] if wishes.channels else [c for c in CANDIDATES if c <= wishes.most_channels]
    modes, reason = _modes(wishes, work, model, situation)
    ways = {(c, direct): _predict(c, direct, wishes, work, model, situation) for direct in modes for c in channels}
    best = {direct: _fewest([ways[c, direct] for c in channels], situation) for direct in modes}
    # where a guest is pre-copied it waits equally long for either
    chosen = min(best.values(), key=lambda way: (_goal(way, situation), way.stable_seconds))
    why = []
    if wishes.direct_io is DirectIO.AUTO:
        why.append(reason or _compared(chosen, best[not chosen.direct]))
    if wishes.channels is None:
        why.append(_why_channels(chosen, [ways[c, chosen.direct] for c in channels], wishes, situation))
    if wishes.gap_pages is None:
        cost = _cost(chosen.direct, chosen.channels, model, situation)
        worth = format_size(round(cost.call / cost.byte))
        why.append(
            f"gaps of up to {format_count(chosen.gap_pages, 'page')} are written along: "
            f"a call costs as much as {worth} ({model.source})"
        )
    return Choice(
        channels=chosen.channels,
        direct=chosen.direct,
        gap_pages=chosen.gap_pages,
        shard_pages=wishes.shard_pages or _shard_pages(chosen, work),
        precopy=chosen.precopy,
        write_seconds=chosen.write_seconds,
        stable_seconds=chosen.stable_seconds,
        why=tuple(why),
    )


def _modes(wishes: Wishes, work: Work, model: DeviceModel, situation: Situation) -> tuple[Sequence[bool], str]:
    """Direct or not, and why there is no choice where there is none."""
    if wishes.direct_io is not DirectIO.AUTO:
        return (wishes.direct_io is DirectIO.ON,), ""
    if not model.direct:
        return (False,), "page cache: the file system refuses direct I/O"
    if situation.live:
        return (False,), "page cache: the last round of a live save is small"
    room = round(ROOM_SHARE * situation.room)
    if situation.waits and work.size > room:
        return (
            True,
        ), f"direct: the page cache takes {format_size(room)} at once, there may be {format_size(work.size)}"
    return (False, True), ""


def _predict(
    channels: int, direct: bool, wishes: Wishes, work: Work, model: DeviceModel, situation: Situation
) -> Choice:
    cost = _cost(direct, channels, model, situation)
    gap = cost.gap_pages(work.page_size) if wishes.gap_pages is None else wishes.gap_pages
    window_pages = WINDOW_PAGES_DIRECT if direct else WINDOW_PAGES_BUFFERED
    merged = work.merged(gap, window_pages)
    workers = min(channels, situation.processors)
    precopy = situation.waits and not situation.live
    windows = work.windows * WORK_WINDOW_PAGES / window_pages
    look = (windows * model.window + work.size * model.scan_byte) / workers
    compare = work.pages * model.hash_page / workers if precopy else 0.0
    computing = look + compare + work.pages * model.digest_page / workers
    if direct:
        device = _of(model.direct, channels).seconds(*merged) + windows * model.direct_window / workers
        write = device + computing - model.overlap * min(device, computing)
        before = merged[0] * model.reserve
        after, sync = model.flush.seconds(*merged), model.direct_sync
    else:
        alone = _of(model.buffered, 1).seconds(*merged)
        copies = max(_of(model.buffered, channels).seconds(*merged), alone / workers + computing)
        write = copies + windows * model.buffered_window / workers
        before, after, sync = 0.0, max(model.stable.seconds(*merged) - alone, 0.0), model.buffered_sync
    stable = model.start + before + write
    if situation.durable:
        stable += after + max(sync, model.sync) + model.sync  # of the file, and of its folder
    if precopy:
        write = look + compare
        stable += write
    return Choice(
        channels=channels,
        direct=direct,
        gap_pages=gap,
        shard_pages=0,
        precopy=precopy,
        write_seconds=write,
        stable_seconds=stable,
    )


def _cost(direct: bool, channels: int, model: DeviceModel, situation: Situation) -> CallCost:
    """What decides which gaps are written along."""
    if direct:
        cost = _of(model.direct, channels)
        if situation.live:  # space is reserved before the rounds, and what counts for them is the write alone
            return cost
        if situation.durable:
            cost += model.flush
        return replace(cost, call=cost.call + model.reserve)
    return _of(model.buffered, channels) if situation.waits or situation.live or not situation.durable else model.stable


def _of(costs: Mapping[int, CallCost], channels: int) -> CallCost:
    """The cost of so many channels, or of the largest smaller number that was measured."""
    return costs[max(c for c in costs if c <= channels)]


def _goal(way: Choice, situation: Situation) -> float:
    """What is to be short."""
    return way.write_seconds if situation.waits or situation.live else way.stable_seconds


def _fewest(ways: Sequence[Choice], situation: Situation) -> Choice:
    """The one with the fewest channels, unless more are worth it."""
    best = ways[0]
    for way in ways[1:]:
        if _goal(way, situation) <= WORTH * _goal(best, situation) < _goal(best, situation):
            best = way
    return best


def _compared(chosen: Choice, other: Choice) -> str:
    names = {True: "direct", False: "through the page cache"}
    return (
        f"{'direct' if chosen.direct else 'page cache'}: {chosen.stable_seconds:.3f} s to stable storage predicted, "
        f"{other.stable_seconds:.3f} s {names[other.direct]}"
    )


def _why_channels(chosen: Choice, ways: Sequence[Choice], wishes: Wishes, situation: Situation) -> str:
    head = format_count(chosen.channels, "channel")
    others = [way for way in ways if way.channels != chosen.channels]
    if not others:
        return f"{head}: {wishes.why_most}"
    listed = ", ".join(f"{_goal(way, situation):.3f} s with {way.channels}" for way in others)
    return f"{head}: {_goal(chosen, situation):.3f} s predicted, {listed}"


def _shard_pages(way: Choice, work: Work) -> int:
    """Pages that take about SHARD_SECONDS, but few enough for all workers to share them evenly."""
    even = work.pages // (way.channels * SHARDS_PER_WORKER)
    timely = int(work.pages * SHARD_SECONDS * way.channels / way.write_seconds) if way.write_seconds else even
    return max(min(even, timely, MAX_SHARD_PAGES), MIN_SHARD_PAGES)
