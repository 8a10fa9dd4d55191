from parallel_fixedram.machines.builtin import child
from parallel_fixedram.machines.builtin.workload import BATCH_PAGES

ONE_STEP_PER_SECOND = BATCH_PAGES * 4096


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_rate_spreads_steps_evenly_and_makes_up_for_late_ones() -> None:
    clock = Clock()
    pace = child._Pace(ONE_STEP_PER_SECOND, clock)
    assert pace.wait_ms(0) == 1000
    clock.now += 2.5
    assert [pace.wait_ms(done) for done in range(4)] == [0, 0, 500, 1500]


def test_a_pause_is_not_made_up_for() -> None:
    clock = Clock()
    pace = child._Pace(ONE_STEP_PER_SECOND, clock)
    clock.now += 60
    pace.restart(3)
    assert pace.wait_ms(3) == 1000


def test_without_a_rate_every_step_is_due_at_once() -> None:
    assert child._Pace(0).wait_ms(0) == 0
