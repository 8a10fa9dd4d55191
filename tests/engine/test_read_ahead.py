import os
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.channels import WrappedChannel
from support.examples import at_most
from support.refusing import Refuse
from support.saving import save, several
from support.sources import ScriptedGuest

from parallel_fixedram.core.errors import HostError
from parallel_fixedram.core.shards import Shard
from parallel_fixedram.engine.pages.read_ahead import ReadAhead
from parallel_fixedram.engine.pages.window import Window, WindowReader, windows
from parallel_fixedram.engine.workers.messages import Tally
from parallel_fixedram.image.cold import direct_channel
from parallel_fixedram.image.image import Image

SIZES = (1, 64, 512)
RAM = "A-" + "B" * 700 + "-" * 600 + "0C" * 100 + "-D" * 5


def image_of(folder: Path, ram: str) -> Image:
    with ScriptedGuest({"ram": ram}, running=False) as guest:
        save(guest, str(folder / "FILE"), several(overwrite=True))
    return Image(str(folder / "FILE"))


def everything(reader: WindowReader | ReadAhead, image: Image, size: int) -> tuple[list[tuple[int, bytes]], Tally]:
    """All windows of the block with their contents."""
    bitmap, tally = image.bitmap("ram"), Tally()
    shard = Shard(0, 0, len(bitmap.words), bitmap.count())
    found = reader.each(image.block("ram"), windows(bitmap, shard, size), tally)
    return [(window.first, pages.tobytes()) for window, pages in found], tally


@given(st.lists(st.sampled_from("AB0---"), min_size=1, max_size=200), st.sampled_from(SIZES))
@at_most(15)
def test_what_is_read_ahead_is_what_is_read_one_by_one(tmp_path: Path, letters: list[str], size: int) -> None:
    with image_of(tmp_path, "".join(letters)) as image:
        plain, counted = everything(WindowReader(image.channel, 4096, size), image, size)
        ahead, also_counted = everything(ReadAhead(image.channel, 4096, size), image, size)
    assert ahead == plain
    assert also_counted.bytes == counted.bytes == 4096 * sum(letter in "AB" for letter in letters)


@pytest.mark.parametrize("size", SIZES)
def test_past_the_page_cache_the_same_is_read(tmp_path: Path, size: int) -> None:
    with image_of(tmp_path, RAM) as image, direct_channel(image, image.blocks) as direct:
        if direct is None:
            pytest.skip("this file system takes no direct I/O")
        plain, _ = everything(WindowReader(image.channel, 4096, size), image, size)
        ahead, _ = everything(ReadAhead(direct, 4096, size), image, size)
    assert ahead == plain


class Held(WrappedChannel):
    """Says which reads have begun and ended, and holds each back until it is told to go on."""

    def __init__(self, image: Image) -> None:
        super().__init__(image.channel)
        self.begun: list[int] = []
        self.may_read, self.ended = threading.Semaphore(0), threading.Semaphore(0)

    def read(self, offset: int, into: memoryview) -> None:
        self.begun.append(offset)
        assert self.may_read.acquire(timeout=30)
        super().read(offset, into)
        self.ended.release()

    def let_one_read(self) -> None:
        """Return when one more read has ended."""
        self.may_read.release()
        assert self.ended.acquire(timeout=30)


def test_one_window_is_read_ahead_into_another_buffer_and_no_more(tmp_path: Path) -> None:
    with image_of(tmp_path, "A" * 64 + "B" * 64 + "C" * 64 + "D" * 64) as image:
        channel = Held(image)
        all_windows = windows(image.bitmap("ram"), Shard(0, 0, 4, 256), 64)
        found = ReadAhead(channel, 4096, 64).each(image.block("ram"), all_windows, Tally())
        channel.may_read.release()
        _, first = next(found)
        assert channel.ended.acquire(timeout=30)
        before = first.copy()
        channel.let_one_read()
        assert len(channel.begun) == 2
        assert np.array_equal(first, before)
        for _ in range(2):
            channel.may_read.release()
        assert [pages.tobytes() for _, pages in found] == [
            image.read_pages("ram", first, 64) for first in (64, 128, 192)
        ]


class FailingReads(WrappedChannel):
    """Reads fail after so many."""

    def __init__(self, image: Image, successes: int) -> None:
        super().__init__(image.channel)
        self._left = successes

    def read(self, offset: int, into: memoryview) -> None:
        self._left -= 1
        if self._left < 0:
            raise HostError("cannot read")
        super().read(offset, into)


@pytest.mark.parametrize("successes", [0, 1, 2])
def test_what_could_be_read_comes_before_the_failure(tmp_path: Path, successes: int) -> None:
    seen: list[Window] = []
    with image_of(tmp_path, "A" * 256) as image:
        reader = ReadAhead(FailingReads(image, successes), 4096, 64)
        all_windows = windows(image.bitmap("ram"), Shard(0, 0, 4, 256), 64)
        found = reader.each(image.block("ram"), all_windows, Tally())
        for _ in range(successes):
            seen.append(next(found)[0])
        with pytest.raises(HostError, match="cannot read"):
            next(found)
    assert [window.first for window in seen] == [64 * number for number in range(successes)]


def test_a_place_that_is_not_aligned_is_not_read_past_the_page_cache(tmp_path: Path) -> None:
    with image_of(tmp_path, "A") as image:
        saved = image.blocks[0]
        object.__setattr__(saved.header, "pages_offset", saved.header.pages_offset + 512)
        with direct_channel(image, [saved]) as direct:
            assert direct is None


def test_where_direct_reading_is_refused_nothing_is_left_open(tmp_path: Path, refuse: Refuse) -> None:
    with image_of(tmp_path, "A") as image:
        before = os.listdir("/proc/self/fd")
        for call in ("preadv", "open"):
            refuse(os, call, 22)
            with direct_channel(image, image.blocks) as direct:
                assert direct is None
                assert os.listdir("/proc/self/fd") == before
