"""Which channel pages are written to."""

import os
from collections.abc import Iterator

import pytest

from parallel_fixedram.core.bitmap import PageBitmap
from parallel_fixedram.core.errors import HostError
from parallel_fixedram.core.ramblock import PageRange
from parallel_fixedram.engine import direct_io
from parallel_fixedram.engine.direct_io import FEW_RUNS, SCATTERED_RUN_PAGES, DirectIO, PageChannel, open_page_channel
from parallel_fixedram.host.channel import FileChannel
from parallel_fixedram.host.publish import PendingFile

PAGE = 4096


class Pending(PendingFile):
    """A file whose file system takes direct I/O, or refuses it."""

    takes = True

    def open_direct(self) -> FileChannel | None:
        return FileChannel(os.dup(self.fd), "direct") if self.takes else None


@pytest.fixture
def pending(target: str) -> Iterator[Pending]:
    with Pending(target) as found:
        yield found


@pytest.fixture(autouse=True)
def _no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page cache is full, so that saves do not count on it."""
    monkeypatch.setattr(direct_io, "dirty_room", lambda: 0)


def runs(count: int, length: int) -> PageBitmap:
    """So many runs of so many pages."""
    bitmap = PageBitmap(count * (length + 1) or 1)
    for number in range(count):
        bitmap.set_range(PageRange(number * (length + 1), length))
    return bitmap


def opened(
    pending: Pending, wanted: DirectIO, *data: PageBitmap, live: bool = False, waits: bool = False
) -> PageChannel:
    found = open_page_channel(pending, wanted, live=live, waits=waits, data=data, page_size=PAGE)
    assert found.direct == (found.channel is not pending.channel)
    if found.direct:
        assert isinstance(found.channel, FileChannel)
        os.close(found.channel.fd)
    return found


MANY, SHORT = FEW_RUNS + 1, SCATTERED_RUN_PAGES - 1


@pytest.mark.parametrize(
    ("data", "direct"),
    [
        ([], True),
        ([runs(0, 0)], True),
        ([runs(1, 1000)], True),
        ([runs(FEW_RUNS, 1)], True),
        ([runs(MANY, 1)], False),
        ([runs(MANY, SHORT)], False),
        ([runs(MANY, SHORT + 1)], True),
        ([runs(FEW_RUNS, 1), runs(1, 1)], False),
        ([runs(MANY, 1), runs(1, MANY * SCATTERED_RUN_PAGES)], True),
    ],
)
def test_auto_is_direct_but_for_many_short_runs(pending: Pending, data: list[PageBitmap], direct: bool) -> None:
    found = opened(pending, DirectIO.AUTO, *data)
    assert (found.direct, found.note) == (direct, "")
    assert opened(pending, DirectIO.ON, *data).direct
    assert not opened(pending, DirectIO.OFF, *data).direct


def test_auto_is_buffered_for_a_live_save(pending: Pending) -> None:
    assert not opened(pending, DirectIO.AUTO, runs(1, 1000), live=True).direct
    assert opened(pending, DirectIO.ON, runs(1, 1000), live=True).direct


def test_auto_is_buffered_where_a_guest_waits_and_the_page_cache_has_room(
    pending: Pending, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(direct_io, "dirty_room", lambda: 100 * PAGE)
    assert not opened(pending, DirectIO.AUTO, runs(1, 80), waits=True).direct
    assert opened(pending, DirectIO.AUTO, runs(1, 81), waits=True).direct
    assert opened(pending, DirectIO.AUTO, runs(1, 80)).direct


def test_a_refusal_is_an_error_only_where_direct_was_asked_for(
    pending: Pending, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pending, "takes", False)
    found = opened(pending, DirectIO.AUTO, runs(1, 1000))
    assert not found.direct
    assert "refuses direct I/O: pages were written through the page cache" in found.note
    assert opened(pending, DirectIO.AUTO, runs(MANY, 1)).note == ""
    assert opened(pending, DirectIO.OFF, runs(1, 1000)).note == ""
    with pytest.raises(HostError, match="refuses direct I/O") as caught:
        opened(pending, DirectIO.ON, runs(1, 1000))
    assert caught.value.hint == "--direct-io auto falls back to buffered writes"
