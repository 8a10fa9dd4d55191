"""The spill writer: the process that writes the handler's copies from the ring to the file."""

from __future__ import annotations

import select
import socket

import numpy as np

from parallel_fixedram.core.bitmap import WORD_PAGES, Bits, runs_of_ones
from parallel_fixedram.core.protocols import Channel, Pages
from parallel_fixedram.engine.capture.snapshot.groups import Groups
from parallel_fixedram.engine.capture.snapshot.link import Link
from parallel_fixedram.engine.capture.snapshot.marks import Marks
from parallel_fixedram.engine.capture.snapshot.messages import Done, receive, send
from parallel_fixedram.engine.capture.snapshot.places import Target
from parallel_fixedram.engine.capture.snapshot.ring import Ring
from parallel_fixedram.engine.pages.digest import page_digests
from parallel_fixedram.engine.pages.window import merge_runs, nonzero_pages

_AT_ONCE = 16
"""Groups that are in flight together: 4 MiB."""


class SpillWriter:
    """Writes groups to their places.

    Args:
        groups: where groups are.
        target: where they and their digests go; which pages are in the file is noted in the marks instead.
        marks: of all groups.
        ring: where the groups come from.
        channel: the file; it bypasses the page cache if the workers' channels do.
    """

    def __init__(self, groups: Groups, target: Target, marks: Marks, ring: Ring, channel: Channel) -> None:
        self._groups = groups
        self._target = target
        self._marks = marks
        self._ring = ring
        self._channel = channel

    def run(self, control: socket.socket, link: Link) -> None:
        """Write groups until no more will come.

        Args:
            control: to the coordinator; its first message says that no more will come.
            link: to the handler.

        Raises:
            HostError: a write failed.
            EOFError: the coordinator is gone.
        """
        poll = select.poll()
        for each in (control, link):
            poll.register(each.fileno(), select.POLLIN)
        while True:
            self.drain(link)
            ready = {fd for fd, _ in poll.poll()}
            if link.fileno() in ready and not link.hear():
                poll.unregister(link.fileno())  # the handler is gone, which the coordinator deals with
            if control.fileno() in ready:
                receive(control)
                self.drain(link)
                send(control, Done())
                return

    def drain(self, link: Link) -> None:
        """Write all that is in the ring."""
        while waiting := len(self._ring):
            count = min(waiting, _AT_ONCE)
            begun = [self._begin(*self._ring.peek(place)) for place in range(count)]
            self._channel.settle()
            for group, pages, store in begun:
                self._publish(group, pages, store)
            # asked before room is made, because a handler that waits for room has to be told
            was_full = self._ring.is_full()
            # when nobody looks at the slots any more: the handler may use them from now on
            self._ring.take(count)
            if was_full:
                link.tell()

    def _begin(self, group: int, slot: Pages) -> tuple[int, Pages, Bits]:
        block, word = self._groups.place(group)
        pages = slot[: self._groups.pages(group)]
        if self._marks.written[group]:  # a worker was quicker: the same bytes are there already
            return group, pages, np.zeros(len(pages), np.uint8)
        store = np.ones(len(pages), np.uint8) if self._target.keep_zero_pages[block] else nonzero_pages(pages)
        runs = merge_runs(runs_of_ones(store), self._target.max_gap_pages)
        offset = self._target.blocks[block].page_offset(word * WORD_PAGES)
        self._channel.write_runs(offset, pages, runs, np.ones(len(pages), np.uint8))
        return group, pages, store

    def _publish(self, group: int, pages: Pages, store: Bits) -> None:
        block, word = self._groups.place(group)
        stored = np.flatnonzero(store)
        self._target.digests[block][word * WORD_PAGES + stored] = page_digests(pages, store)[stored]
        self._marks.spilled[block].put_bits(word, store)
