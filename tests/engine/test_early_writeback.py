"""EarlyWriteback: the device begins before the sync, once much has gone through the page cache."""

import errno
import queue
import threading

import pytest
from support.pictures import PAGE

from parallel_fixedram.engine.pages.early_writeback import SHARE_OF_ROOM, EarlyWriteback
from parallel_fixedram.host import linux


class Hints:
    """Notes what the kernel is asked to write back, and fails the first ``failing`` times."""

    def __init__(self) -> None:
        self.passed: queue.Queue[tuple[int, int, int]] = queue.Queue()
        self.failing = 0

    def __call__(self, fd: int, offset: int = 0, length: int = 0) -> None:
        self.passed.put((fd, offset, length))
        if self.failing:
            self.failing -= 1
            raise OSError(errno.EIO, "no")

    def next(self) -> tuple[int, int, int]:
        return self.passed.get(timeout=10)


@pytest.fixture
def hints(monkeypatch: pytest.MonkeyPatch) -> Hints:
    hints = Hints()
    monkeypatch.setattr(linux, "start_writeback", hints)
    return hints


@pytest.mark.parametrize("failing", [0, 1, 4])
def test_the_device_starts_beyond_a_share_of_the_room_and_gets_every_range_once(hints: Hints, failing: int) -> None:
    """It is a hint: that it fails is no error."""
    hints.failing = failing
    room = 300 * PAGE
    few = int(room * SHARE_OF_ROOM) // 2
    with EarlyWriteback(7, room) as writeback:
        writeback.wrote(0, 1000, few)
        writeback.wrote(1000, 50, few)
        assert "writeback" not in "".join(thread.name for thread in threading.enumerate())
        assert hints.passed.empty()
        writeback.wrote(5000, 60, PAGE)
        assert [hints.next() for _ in range(3)] == [(7, 0, 1000), (7, 1000, 50), (7, 5000, 60)]
        writeback.wrote(9000, 1, 1)
        assert hints.next() == (7, 9000, 1)
    assert hints.passed.empty()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("writeback")]


def test_what_fits_its_share_is_left_to_the_kernel(hints: Hints) -> None:
    with EarlyWriteback(7, 300) as writeback:
        writeback.wrote(0, 1000, 50)
        writeback.wrote(1000, 1000, 50)
    assert hints.passed.empty()
