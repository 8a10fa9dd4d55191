"""A save on an imagined machine: workers, processors, a lock and devices, event by event.

Every worker takes a shard when it is free and goes through its calls one after the other::

    shard -> for each call:  scan      a processor, shared with the other workers
                             lock      where writers of one file exclude each other (buffered writes)
                             copy      a processor, under the lock
                             request   one for each device that the call's bytes are striped over:
                                       wait for a slot of the queue, call_seconds, then the bytes;
                                       requests in the queue overlap, but for their bytes, which take turns
                             digest    a processor

Not simulated: memory bandwidth, the page cache's limits, the file system's own writes, and whatever makes a real
device slower the second time. Nothing is random: the same arguments give the same result.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from parallel_fixedram.core.units import MIB
from parallel_fixedram.experiments.shard_calls import PlannedWrites
from parallel_fixedram.experiments.simulated_time import Action, Clock, Shared, Slots

SATURATED = 0.9
"""A resource that is busy for this share of the time is what the save waits for."""

BANDWIDTH, PROCESSORS, LOCK, QUEUE = "device bandwidth", "processors", "file lock", "device queue"
_LIMITS = (BANDWIDTH, PROCESSORS, LOCK, QUEUE)
"""In this order: a lock or a queue that is held while a device or a processor is the limit is not the reason."""
WAITING = "channels: each waits for its own calls, more of them would help"


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """What the pages go to; several are one striped volume."""

    call_seconds: float = 0.0
    """What a request takes besides its bytes; requests in the queue wait for it side by side."""
    byte_seconds: float = 0.0
    """What a byte takes on one device; the requests of a device take turns.

    Not side by side: then workers that start together would stay together, all at one device and then all at the next.
    """
    queue_depth: int = 32
    """Requests that a device serves at a time, at least 1."""
    count: int = 1
    stripe_bytes: int = MIB
    """So many bytes of the file lie on one device, the next ones on the next."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """What the workers run on."""

    processors: int
    scan_byte_seconds: float = 0.0
    """To look at a byte, before the call."""
    copy_byte_seconds: float = 0.0
    """Of a processor inside the call."""
    copy_call_seconds: float = 0.0
    digest_byte_seconds: float = 0.0
    """After the call."""
    lock: bool = False
    """Whether only one call at a time is inside the file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulated:
    """How a simulated save went."""

    seconds: float
    """Of the whole workload."""
    calls: int
    """Of the part that was simulated call by call."""
    busy: Mapping[str, float]
    """Share of the time that each resource was busy, 0 to 1; of several devices the busiest."""

    @property
    def bottleneck(self) -> str:
        """What would have to be faster, or more, for the save to be faster."""
        return next((name for name in _LIMITS if self.busy[name] >= SATURATED), WAITING)


class _Volume:
    """The devices."""

    def __init__(self, clock: Clock, device: Device) -> None:
        self._clock, self._device = clock, device
        self.queues = [Slots(clock, device.queue_depth) for _ in range(device.count)]
        self.buses = [Slots(clock, 1) for _ in range(device.count)]

    def request(self, offset: int, size: int, done: Action) -> None:
        """Write a range of the file."""
        parts = self._parts(offset, size)
        left = len(parts)

        def part_done() -> None:
            nonlocal left
            left -= 1
            if not left:
                done()

        for number, part in parts.items():
            self._one(number, part, part_done)

    def _parts(self, offset: int, size: int) -> dict[int, int]:
        """Bytes for each device."""
        device = self._device
        if device.count == 1:
            return {0: size}
        parts: dict[int, int] = {}
        end = offset + size
        while offset < end:
            stripe = offset // device.stripe_bytes
            after = min((stripe + 1) * device.stripe_bytes, end)
            parts[stripe % device.count] = parts.get(stripe % device.count, 0) + after - offset
            offset = after
        return parts

    def _one(self, number: int, size: int, done: Action) -> None:
        queue, bus, after = self.queues[number], self.buses[number], self._clock.after

        def transferred() -> None:
            bus.leave()
            queue.leave()
            done()

        def begin() -> None:
            after(size * self._device.byte_seconds, transferred)

        queue.enter(lambda: after(self._device.call_seconds, lambda: bus.enter(begin)))


class _Save:
    """The workers and what they share."""

    def __init__(self, workload: PlannedWrites, device: Device, host: Host) -> None:
        self.clock = Clock()
        self.processors = Shared(self.clock, host.processors)
        self.lock = Slots(self.clock, 1)
        self.volume = _Volume(self.clock, device)
        self.calls = 0
        self._host = host
        self._shards = iter(workload.shards)

    def work(self) -> None:
        """One worker takes a shard, if there is one left."""
        shard = next(self._shards, None)
        if shard is not None:
            self._next(iter(shard))

    def _next(self, calls: Iterator[tuple[int, int]]) -> None:
        call = next(calls, None)
        if call is None:
            self.work()
            return
        self.calls += 1
        offset, size = call
        host, processors = self._host, self.processors

        def written() -> None:
            if host.lock:
                self.lock.leave()
            processors.submit(size * host.digest_byte_seconds, lambda: self._next(calls))

        def copied() -> None:
            self.volume.request(offset, size, written)

        def entered() -> None:
            processors.submit(host.copy_call_seconds + size * host.copy_byte_seconds, copied)

        enter = (lambda: self.lock.enter(entered)) if host.lock else entered
        processors.submit(size * host.scan_byte_seconds, enter)


def simulate(workload: PlannedWrites, *, channels: int, device: Device, host: Host) -> Simulated:
    """Save ``workload`` with so many workers.

    Args:
        workload: shards in the order in which they are handed out; stands for ``1 / share`` times as much.
        channels: number of workers, at least 1.
        device: where to.
        host: where.
    """
    save = _Save(workload, device, host)
    for _ in range(channels):
        save.clock.after(0.0, save.work)
    save.clock.run()
    seconds = save.clock.now
    processors = save.processors.work / (host.processors * seconds) if seconds else 0.0
    busy = {
        BANDWIDTH: max(bus.busy() for bus in save.volume.buses),
        PROCESSORS: min(processors, 1.0),  # against rounding
        LOCK: save.lock.busy(),
        QUEUE: max(queue.busy() for queue in save.volume.queues),
    }
    return Simulated(seconds=seconds / workload.share, calls=save.calls, busy=busy)
