"""ReadAhead: reads the next window of a file while the last one is processed.

::

    thread    read window 0 | read window 1    | read window 2    | ...
    worker                  | write window 0   | write window 1   | ...

If the page cache is bypassed nobody else reads ahead, and the device would be idle while we write to memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from parallel_fixedram.core.protocols import Channel, Pages
from parallel_fixedram.engine.pages.window import Window, WindowReader
from parallel_fixedram.engine.workers.messages import Tally
from parallel_fixedram.format.mapped_ram import SavedBlock


class ReadAhead:
    """A thread that reads, alternately into two buffers; for one process, to be made after the fork.

    Each window is read by a single call, however scattered its pages are: the device then gets all pieces at once, and
    holes between them cost little.

    Args:
        channel: the file.
        page_size: of the largest page, bytes.
        window_pages: of the largest window.
    """

    def __init__(self, channel: Channel, page_size: int, window_pages: int) -> None:
        self._readers = [WindowReader(channel, page_size, window_pages, gap_pages=window_pages) for _ in range(2)]
        self._thread = ThreadPoolExecutor(1, "read-ahead")

    def each(self, saved: SavedBlock, windows: Iterable[Window], tally: Tally) -> Iterator[tuple[Window, Pages]]:
        """As ``WindowReader.each``, but the thread updates the fields of ``tally`` that are about reading."""
        last: tuple[Window, Future[Pages]] | None = None
        for number, window in enumerate(windows):
            future = self._thread.submit(self._readers[number % 2].read, saved, window, tally)
            if last:
                yield last[0], last[1].result()
            last = window, future
        if last:
            yield last[0], last[1].result()
