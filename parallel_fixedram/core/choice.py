"""How to write: channels, bypassing the page cache or not, gaps and shards, chosen from what writes cost.

::

    Work (what there is to write) + DeviceModel (what it costs) + Situation (who waits) --choose--> Choice, and why

What was asked for is taken as it is; what was left open is whatever is predicted to be fastest: until the last page is
written where a guest runs meanwhile or waits, else until everything is on stable storage.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from parallel_fixedram.core.cost import CallCost, DeviceModel, Work
from parallel_fixedram.core.save_options import MOST_CHANNELS, CaptureMode, DirectIO, SaveOptions
from parallel_fixedram.core.shards import MIN_SHARD_PAGES, WINDOW_PAGES, WINDOW_PAGES_DIRECT
from parallel_fixedram.core.units import format_count, format_size

CANDIDATES = (1, 2, MOST_CHANNELS)
"""Numbers of channels that are considered."""

WORTH = 0.95
"""More channels have to be predicted to take at most this share of the time, or they are not worth their processes."""

ROOM_SHARE = 0.8
"""How much of what the page cache can take at once a save counts on: others write, too."""

SHARD_SECONDS = 0.03
"""How long a shard should take: what progress shows, what a lost worker costs, and how late another one may end."""
SAVE_SHARDS_PER_WORKER = 16
"""At least so many, that all end at about the same time."""
MAX_SAVE_SHARD_PAGES = 16384
"""Most pages of a shard of a save; shards of all other work are smaller (``shards``)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """What matters besides the amount of work."""

    guest_waits: bool
    """Whether a guest runs, and will stand still while the last pages are written."""
    room: int
    """Bytes the page cache takes before the kernel slows writers down."""
    processors: int
    """How many workers can compute at once."""
    no_snapshot: str = "nobody knows whether one is possible"
    """Why a guest that runs is not to be captured by a snapshot, as the end of a sentence; empty if it may be."""
    durable: bool = True
    """Whether the file is synced at the end."""
    copied: bool = False
    """Whether RAM can only be read by copying it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """How to write."""

    channels: int
    direct: bool
    gap_pages: int
    """Gaps of up to so many pages are bridged."""
    shard_pages: int
    """Pages of a shard, about."""
    capture: CaptureMode
    """How the file comes to hold one instant; never ``auto``."""
    write_seconds: float
    """Predicted: what writing the pages takes; with ``compare``, from the moment the guest stands still."""
    stable_seconds: float
    """Predicted: until the file is on stable storage, or complete where it is not synced; digests included."""
    why: tuple[str, ...] = ()
    """A sentence for everything that was left open."""

    @property
    def window_pages(self) -> int:
        """Pages that are tested and then written at a time."""
        return WINDOW_PAGES_DIRECT if self.direct else WINDOW_PAGES


def choose(options: SaveOptions, work: Work, model: DeviceModel, situation: Situation) -> Choice:
    """The fastest of what is left open, as the model predicts.

    Whether the file system takes direct I/O is in the model; one that is asked for has to be in it.

    Raises:
        CapabilityError: the gate refuses.
    """
    asked, writing = options.gate.channels, options.writing
    most, why_most = options.gate.most_channels()
    channels = [asked] if asked else [c for c in CANDIDATES if c <= most]
    mode = options.capture.mode
    capture, why = way_to_capture(mode, guest_waits=situation.guest_waits, no_snapshot=situation.no_snapshot)
    if capture is CaptureMode.SNAPSHOT:
        situation = replace(situation, guest_waits=False)  # for none of what is written
    modes, reason = _modes(writing.direct_io, capture, work, model, situation)
    ways = {
        (c, direct): _predict(c, direct, writing.gap_pages, capture, work, model, situation)
        for direct in modes
        for c in channels
    }
    best = {direct: _fewest([ways[c, direct] for c in channels], situation) for direct in modes}
    # a guest whose pages are compared waits equally long for either
    chosen = min(best.values(), key=lambda way: (_goal(way, situation), way.stable_seconds))
    if writing.direct_io is DirectIO.AUTO:
        why.append(reason or _compared(chosen, best[not chosen.direct]))
    if asked is None:
        why.append(_why_channels(chosen, [ways[c, chosen.direct] for c in channels], why_most, situation))
    if writing.gap_pages is None:
        cost = _cost(chosen.direct, chosen.channels, capture, model, situation)
        worth = format_size(round(cost.call / cost.byte))
        why.append(
            f"gaps of up to {format_count(chosen.gap_pages, 'page')} are bridged: "
            f"a call costs as much as {worth} ({model.source})"
        )
    return Choice(
        channels=chosen.channels,
        direct=chosen.direct,
        gap_pages=chosen.gap_pages,
        shard_pages=writing.shard_pages or _shard_pages(chosen, work),
        capture=capture,
        write_seconds=chosen.write_seconds,
        stable_seconds=chosen.stable_seconds,
        why=tuple(why),
    )


def way_to_capture(mode: CaptureMode, *, guest_waits: bool, no_snapshot: str) -> tuple[CaptureMode, list[str]]:
    """Which way it is, and why it is another one than was asked for.

    Args:
        mode: what was asked for.
        guest_waits, no_snapshot: as of ``Situation``.
    """
    if not guest_waits:
        match mode:
            case CaptureMode.AUTO:
                return CaptureMode.STOPPED, []
            case CaptureMode.COMPARE:
                return CaptureMode.STOPPED, ["stopped: the guest stands still already, there is nothing to compare"]
            case CaptureMode.SNAPSHOT:
                return CaptureMode.STOPPED, ["stopped: the guest stands still already, and nothing of it will change"]
    if mode is CaptureMode.AUTO:
        if no_snapshot:
            return CaptureMode.COMPARE, [f"compare: no snapshot, because {no_snapshot}"]
        return CaptureMode.SNAPSHOT, []
    return mode, []


def _modes(
    wanted: DirectIO, capture: CaptureMode, work: Work, model: DeviceModel, situation: Situation
) -> tuple[Sequence[bool], str]:
    """Direct or not, and why there is no choice where there is none."""
    if wanted is not DirectIO.AUTO:
        return (wanted is DirectIO.ON,), ""
    if not model.direct:
        return (False,), "page cache: the file system refuses direct I/O"
    if capture is CaptureMode.ROUNDS:
        return (False,), "page cache: the last one of several rounds is small"
    room = round(ROOM_SHARE * situation.room)
    if situation.guest_waits and work.size > room:
        return (
            True,
        ), f"direct: the page cache takes {format_size(room)} at once, there may be {format_size(work.size)}"
    return (False, True), ""


def _predict(
    channels: int,
    direct: bool,
    gap_pages: int | None,
    capture: CaptureMode,
    work: Work,
    model: DeviceModel,
    situation: Situation,
) -> Choice:
    gap = gap_pages
    if gap is None:
        gap = _cost(direct, channels, capture, model, situation).gap_pages(work.page_size)
    window_pages = WINDOW_PAGES_DIRECT if direct else WINDOW_PAGES
    merged = work.merged(gap, window_pages)
    windows = work.windows * WINDOW_PAGES / window_pages
    if not (direct or situation.copied) and capture in (CaptureMode.STOPPED, CaptureMode.ROUNDS):
        windows = min(windows, work.pages / window_pages)  # nothing is copied: those with few pages are joined
    workers = min(channels, situation.processors)
    compares = capture is CaptureMode.COMPARE
    look = (windows * model.window + work.size * model.scan_byte) / workers
    compare = work.pages * model.hash_page / workers if compares else 0.0
    computing = look + compare + work.pages * model.digest_page / workers
    if direct:
        device = _of(model.direct, channels).seconds(*merged) + windows * model.direct_window / workers
        write = device + computing - model.overlap * min(device, computing)
        before = merged[0] * model.reserve
        after, sync = model.flush.seconds(*merged), model.direct_sync
    else:
        alone = _of(model.buffered, 1).seconds(*merged)
        # the trials say how long writers of one file hold each other up; else each copies its part, and computes in
        # between
        copies = max(_of(model.buffered, channels).seconds(*merged), alone / workers + computing)
        write = copies + windows * model.buffered_window / workers
        before, after, sync = 0.0, max(model.stable.seconds(*merged) - alone, 0.0), model.buffered_sync
    stable = model.start + before + write
    if situation.durable:
        stable += after + max(sync, model.sync) + model.sync  # of the file, and of its folder
    if compares:
        write = look + compare
        stable += write
    return Choice(
        channels=channels,
        direct=direct,
        gap_pages=gap,
        shard_pages=0,
        capture=capture,
        write_seconds=write,
        stable_seconds=stable,
    )


def _cost(direct: bool, channels: int, capture: CaptureMode, model: DeviceModel, situation: Situation) -> CallCost:
    """What decides which gaps are bridged."""
    rounds = capture is CaptureMode.ROUNDS
    if direct:
        cost = _of(model.direct, channels)
        if rounds:  # space is reserved before the rounds, and what counts for them is the write alone
            return cost
        if situation.durable:
            cost += model.flush
        return replace(cost, call=cost.call + model.reserve)
    into_cache = situation.guest_waits or rounds or not situation.durable
    return _of(model.buffered, channels) if into_cache else model.stable


def _of(costs: Mapping[int, CallCost], channels: int) -> CallCost:
    """The cost of so many channels, or of the largest smaller number that was measured."""
    return costs[max(c for c in costs if c <= channels)]


def _goal(way: Choice, situation: Situation) -> float:
    """What is to be short."""
    rounds = way.capture is CaptureMode.ROUNDS
    return way.write_seconds if situation.guest_waits or rounds else way.stable_seconds


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


def _why_channels(chosen: Choice, ways: Sequence[Choice], why_most: str, situation: Situation) -> str:
    head = format_count(chosen.channels, "channel")
    others = [way for way in ways if way.channels != chosen.channels]
    if not others:
        return f"{head}: {why_most}"
    listed = ", ".join(f"{_goal(way, situation):.3f} s with {way.channels}" for way in others)
    return f"{head}: {_goal(chosen, situation):.3f} s predicted, {listed}"


def _shard_pages(way: Choice, work: Work) -> int:
    """Pages that take about SHARD_SECONDS, but few enough for all workers to share them evenly."""
    even = work.pages // (way.channels * SAVE_SHARDS_PER_WORKER)
    timely = int(work.pages * SHARD_SECONDS * way.channels / way.write_seconds) if way.write_seconds else even
    return max(min(even, timely, MAX_SAVE_SHARD_PAGES), MIN_SHARD_PAGES)
