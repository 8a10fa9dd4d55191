from pathlib import Path

from support.pictures import PAGE

from parallel_fixedram.core.bitmap import PageBitmap
from parallel_fixedram.core.layout import FileLayout
from parallel_fixedram.core.ramblock import PageRange, RAMBlock
from parallel_fixedram.engine.reserve import Reservation
from parallel_fixedram.host.page_cache import is_cold
from parallel_fixedram.host.publish import PendingFile


def test_reserved_space_can_be_brought_into_the_page_cache_and_is_still_zeros(tmp_path: Path) -> None:
    layout = FileLayout.plan("m", [RAMBlock(idstr="ram", used_length=2048 * PAGE)])
    (saved,) = layout.blocks
    data = PageBitmap(2048)
    data.set_range(PageRange(500, 1000))
    with PendingFile(str(tmp_path / "FILE")) as pending:
        pending.set_size(layout.ram_end)
        space = Reservation(pending, layout.blocks)
        space.take(0, data)
        places = [saved.page_offset(page) for page in range(500, 1500, 7)]
        assert is_cold(pending.fd, places)
        space.bring_into_page_cache()
        assert not is_cold(pending.fd, places)
        assert pending.channel.bytes_at(saved.page_offset(500), 1000 * PAGE) == bytes(1000 * PAGE)
