"""Simulated time that passes from event to event, and what jobs share in it: processors, and places taken in turn."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable

Action = Callable[[], None]


class Clock:
    """Actions in the order of their times; at equal times, in the order in which they were asked for."""

    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Action]] = []
        self._count = 0

    def after(self, seconds: float, action: Action) -> None:
        """Do something so many seconds from now."""
        self._count += 1
        heapq.heappush(self._events, (self.now + seconds, self._count, action))

    def run(self) -> None:
        """Let time pass until nothing is left to happen."""
        while self._events:
            self.now, _, action = heapq.heappop(self._events)
            action()


class Shared:
    """Work that is done side by side, each job at a rate of 1, or less when there are more jobs than ``capacity``."""

    def __init__(self, clock: Clock, capacity: float) -> None:
        self._clock, self._capacity = clock, capacity
        self._jobs: list[tuple[float, int, Action]] = []  # the progress at which each is done
        self._progress = self._updated = 0.0  # work done for a job that has been here from the beginning
        self._count = self._plan = 0
        self.work = 0.0
        """Seconds of work that were asked for."""

    def _rate(self) -> float:
        return min(1.0, self._capacity / len(self._jobs)) if self._jobs else 0.0

    def _update(self) -> None:
        self._progress += (self._clock.now - self._updated) * self._rate()
        self._updated = self._clock.now

    def submit(self, work: float, done: Action) -> None:
        """Start a job; one with nothing to do is done immediately."""
        if work <= 0:
            done()
            return
        self._update()
        self._count += 1
        self.work += work
        heapq.heappush(self._jobs, (self._progress + work, self._count, done))
        self._schedule()

    def _schedule(self) -> None:
        self._plan += 1
        if self._jobs:
            plan = self._plan
            seconds = max(self._jobs[0][0] - self._progress, 0.0) / self._rate()
            self._clock.after(seconds, lambda: self._finish(plan))

    def _finish(self, plan: int) -> None:
        if plan != self._plan:  # jobs came or went since
            return
        self._update()
        end, _, done = heapq.heappop(self._jobs)
        self._progress = max(self._progress, end)  # against rounding
        self._schedule()
        done()


class Slots:
    """So many may be in at a time; the others wait in the order in which they came."""

    def __init__(self, clock: Clock, count: int) -> None:
        self._clock, self._free, self._count = clock, count, count
        self._waiting: deque[Action] = deque()
        self._updated = self._held = 0.0

    def _update(self) -> None:
        self._held += (self._clock.now - self._updated) * (self._count - self._free)
        self._updated = self._clock.now

    def enter(self, action: Action) -> None:
        """Go in, now or when it is this one's turn."""
        self._update()
        if self._free:
            self._free -= 1
            action()
        else:
            self._waiting.append(action)

    def leave(self) -> None:
        """Make room for the next one."""
        self._update()
        if self._waiting:
            self._waiting.popleft()()
        else:
            self._free += 1

    def busy(self) -> float:
        """Mean share of the slots that were taken."""
        return min(self._held / (self._count * self._clock.now), 1.0) if self._clock.now else 0.0
