import mmap
from pathlib import Path

import numpy as np
from support.pictures import PAGE

from parallel_fixedram.core.bitmap import PageBitmap
from parallel_fixedram.core.layout import FileLayout
from parallel_fixedram.core.ramblock import PageRange, RAMBlock
from parallel_fixedram.engine.reserve import Reservation
from parallel_fixedram.host import linux
from parallel_fixedram.host.publish import PendingFile


def cached(fd: int, offset: int, pages: int) -> int:
    """How many pages of a file are in the page cache."""
    with mmap.mmap(fd, pages * PAGE, offset=offset) as view:
        resident = np.empty(pages, np.uint8)
        memory = np.frombuffer(view, np.uint8)
        linux.mincore(memory.ctypes.data, pages * PAGE, resident)
        del memory
    return int((resident & 1).sum())


def test_reserved_space_can_be_brought_into_the_page_cache_and_is_still_zeros(tmp_path: Path) -> None:
    layout = FileLayout.plan("m", [RAMBlock(idstr="ram", used_length=2048 * PAGE)])
    (saved,) = layout.blocks
    data = PageBitmap(2048)
    data.set_range(PageRange(500, 1000))
    with PendingFile(str(tmp_path / "FILE")) as pending:
        pending.set_size(layout.ram_end)
        space = Reservation(pending, layout.blocks)
        space.take(0, data)
        assert cached(pending.fd, saved.page_offset(500), 1000) == 0
        space.bring_into_page_cache(2048 * PAGE)
        assert cached(pending.fd, saved.page_offset(500), 1000) == 1000
        assert pending.channel.bytes_at(saved.page_offset(500), 1000 * PAGE) == bytes(1000 * PAGE)


def test_no_more_is_brought_into_the_page_cache_than_it_has_room_for(tmp_path: Path) -> None:
    layout = FileLayout.plan("m", [RAMBlock(idstr="ram", used_length=2048 * PAGE)])
    with PendingFile(str(tmp_path / "FILE")) as pending:
        pending.set_size(layout.ram_end)
        space = Reservation(pending, layout.blocks)
        space.take(0, PageBitmap(2048, np.full(32, 2**64 - 1, np.uint64)))
        read: list[int] = []
        pending.channel.read = lambda offset, into: read.append(len(into))
        space.bring_into_page_cache(300 * PAGE)
        assert sum(read) == 300 * PAGE
