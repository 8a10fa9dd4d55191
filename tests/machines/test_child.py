import pytest

from parallel_fixedram.machines.builtin import child
from parallel_fixedram.machines.builtin.workload import BATCH_PAGES

ONE_STEP_PER_SECOND = BATCH_PAGES * 4096


class Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(child, "time", clock)
    return clock


def test_a_rate_spreads_steps_evenly_and_makes_up_for_late_ones(clock: Clock) -> None:
    pace = child._Pace(ONE_STEP_PER_SECOND)
    assert pace.wait_ms(0) == 1000
    clock.now += 2.5
    assert [pace.wait_ms(done) for done in range(4)] == [0, 0, 500, 1500]


def test_a_pause_is_not_made_up_for(clock: Clock) -> None:
    pace = child._Pace(ONE_STEP_PER_SECOND)
    clock.now += 60
    pace.restart(3)
    assert pace.wait_ms(3) == 1000


def test_without_a_rate_every_step_is_due_at_once(clock: Clock) -> None:
    assert child._Pace(0).wait_ms(0) == 0
