"""What a stream without fixed offsets would take."""

from parallel_fixedram.core.reports.save import RoundReport
from parallel_fixedram.core.sequential import stream_bytes


def round_of(written, zero):
    pages = {"dirty_pages": written + zero, "written_pages": written, "gap_pages": 5, "zero_pages": zero}
    return RoundReport(**pages, while_running=True, seconds=1.0)


def test_every_round_appends_its_pages_again():
    rounds = [round_of(10, 3), round_of(2, 0), round_of(0, 1)]
    first = 10 * (8 + 4096) + 3 * 9
    assert stream_bytes(rounds) == [first, first + 2 * 4104, first + 2 * 4104 + 9]


def test_no_round_takes_nothing():
    assert stream_bytes([]) == []
