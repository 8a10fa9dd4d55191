"""An observer that remembers what it heard."""

from parallel_fixedram.core.observer import Observer
from parallel_fixedram.core.reports.save import ShardTrace


class Heard(Observer):
    """Keeps everything.

    Attributes:
        events: each call but for shards, as it came.
        phases: name and bytes of each, as they began.
        progress: phase, bytes done and in all, after each call.
        shards: who wrote what.
        notes: what was said.
    """

    def __init__(self) -> None:
        self.events: list[tuple[object, ...]] = []
        self.phases: list[tuple[str, int]] = []
        self.progress: list[tuple[str, int, int]] = []
        self.shards: list[ShardTrace] = []
        self.notes: list[str] = []

    @property
    def done(self) -> dict[str, tuple[int, int]]:
        """Bytes that were done of each phase, and of how many."""
        return {name: (done, total) for name, done, total in self.progress}

    def phase(self, name: str, total: int = 0) -> None:
        self.events.append(("phase", name, total))
        self.phases.append((name, total))
        self.progress.append((name, 0, total))

    def advanced(self, size: int) -> None:
        self.events.append(("advanced", size))
        name, done, total = self.progress[-1]
        self.progress.append((name, done + size, total))

    def shard(self, trace: ShardTrace) -> None:
        self.shards.append(trace)

    def note(self, text: str) -> None:
        self.events.append(("note", text))
        self.notes.append(text)
