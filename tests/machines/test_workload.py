import zlib

import numpy as np
import pytest

from parallel_fixedram.core.protocols import Pages
from parallel_fixedram.core.units import KIB, MIB
from parallel_fixedram.machines.builtin.spec import GuestSpec, Workload
from parallel_fixedram.machines.builtin.workload import BATCH_PAGES, Program, mix, render, scatter

WRITING = [workload for workload in Workload if workload is not Workload.ZERO]
PAGE_COUNTS = [1, 2, 63, 64, 65, BATCH_PAGES, BATCH_PAGES + 1]


def guest(workload: Workload, pages: int = 600, **values: float) -> GuestSpec:
    return GuestSpec(workload=workload, size=pages * 4096, **values)


def written(ram: Pages) -> list[int]:
    return np.flatnonzero(ram.any(axis=1)).tolist()


def steps_of(spec: GuestSpec, count: int) -> list[list[int]]:
    ram, program = render(spec), Program(spec)
    return [program.step(ram, number).tolist() for number in range(1, count + 1)]


@pytest.mark.parametrize("workload", Workload)
@pytest.mark.parametrize("pages", PAGE_COUNTS)
def test_the_same_seed_gives_the_same_ram(workload: Workload, pages: int) -> None:
    spec = guest(workload, pages, seed=5)
    assert np.array_equal(render(spec, 4), render(spec, 4))


@pytest.mark.parametrize("workload", WRITING)
def test_another_seed_gives_other_contents_in_every_page(workload: Workload) -> None:
    one, other = (render(guest(workload, seed=seed, fraction=1), 3) for seed in (1, 2))
    assert (one != other).any(axis=1).all()


@pytest.mark.parametrize("workload", WRITING)
def test_steps_change_the_pages_they_name_and_no_others(workload: Workload) -> None:
    spec = guest(workload, fraction=0.8)
    ram = render(spec)
    program = Program(spec)
    for number in range(1, 6):
        before = ram.copy()
        pages = program.step(ram, number)
        assert np.flatnonzero((ram != before).any(axis=1)).tolist() == pages.tolist()
        assert 0 < len(pages) <= BATCH_PAGES


@pytest.mark.parametrize("workload", WRITING)
def test_no_two_pages_are_alike_even_behind_their_stamps(workload: Workload) -> None:
    ram = render(guest(workload, 1024, fraction=1), 2)
    assert len({page.tobytes() for page in ram[:, 2:]}) == 1024


@pytest.mark.parametrize("workload", WRITING)
def test_a_page_carries_its_number_and_the_step_that_wrote_it(workload: Workload) -> None:
    spec = guest(workload, fraction=1)
    expected = np.zeros(spec.pages, np.uint64)
    for number, pages in enumerate(steps_of(spec, 4), start=1):
        expected[pages] = number
    ram = render(spec, 4)
    assert ram[:, 0].tolist() == list(range(spec.pages))
    assert ram[:, 1].tolist() == expected.tolist()


@pytest.mark.parametrize("workload", Workload)
def test_booting_reports_every_page_it_writes_once(workload: Workload) -> None:
    spec = guest(workload)
    reported = np.concatenate([np.empty(0, np.int64), *(pages for pages, _ in Program(spec).boot())])
    assert sorted(reported.tolist()) == written(render(spec))


def test_zero_touches_nothing() -> None:
    spec = guest(Workload.ZERO, 65)
    assert not render(spec, 3).any()
    assert steps_of(spec, 3) == [[], [], []]


@pytest.mark.parametrize("workload", Workload)
def test_a_fraction_of_nothing_touches_nothing(workload: Workload) -> None:
    assert not render(guest(workload, 65, fraction=0), 3).any()


@pytest.mark.parametrize("workload", [Workload.DENSE, Workload.HOT, Workload.SWEEP, Workload.TEXT])
def test_dense_workloads_write_the_first_pages(workload: Workload) -> None:
    assert written(render(guest(workload, 100, fraction=0.3), 2)) == list(range(30))


@pytest.mark.parametrize("pages", PAGE_COUNTS)
@pytest.mark.parametrize("fraction", [0.1, 0.5, 1.0])
def test_random_writes_exactly_its_fraction_however_long_it_runs(pages: int, fraction: float) -> None:
    spec = guest(Workload.RANDOM, pages, fraction=fraction)
    assert len(written(render(spec, 20))) == round(pages * fraction)


def test_random_scatters_its_pages_over_all_of_ram() -> None:
    spec = guest(Workload.RANDOM, 64 * 64, fraction=0.5)
    present = np.zeros(spec.pages, np.bool_)
    present[written(render(spec))] = True
    in_each_word = present.reshape(64, 64).sum(axis=1)
    assert 16 <= in_each_word.min() <= in_each_word.max() <= 48
    turns = int((present[1:] != present[:-1]).sum())
    assert 1900 < turns < 2200  # 2047 expected of a fair coin


def test_random_chooses_other_pages_with_another_seed() -> None:
    assert written(render(guest(Workload.RANDOM, seed=1))) != written(render(guest(Workload.RANDOM, seed=2)))


def test_hot_writes_a_twentieth_of_its_pages_nine_times_of_ten() -> None:
    spec = guest(Workload.HOT, 20_000)
    program, ram = Program(spec), np.zeros((spec.pages, 512), np.uint64)
    visits = np.zeros(spec.pages, np.int64)
    for number in range(1, 201):
        visits[program.step(ram, number)] += 1
    hottest = np.sort(visits)[::-1][: spec.pages // 20]
    assert 0.88 < hottest.sum() / visits.sum() < 0.95
    assert np.flatnonzero(visits >= 15).max() > 18_000, "the hot pages are scattered"


def test_sweep_goes_through_its_pages_in_order_and_begins_again() -> None:
    spec = guest(Workload.SWEEP, 600)
    assert steps_of(spec, 3) == [
        list(range(256)),
        list(range(256, 512)),
        sorted([*range(512, 600), *range(168)]),
    ]


def test_text_compresses_and_dense_does_not() -> None:
    def factor(workload: Workload) -> float:
        data = render(guest(workload, 256)).tobytes()
        return len(data) / len(zlib.compress(data))

    assert 2 < factor(Workload.TEXT) < 8
    assert factor(Workload.DENSE) < 1.01


@pytest.mark.parametrize(
    ("workload", "checksum"),
    [
        (Workload.DENSE, 0xE39DE633),
        (Workload.RANDOM, 0x914D19E2),
        (Workload.HOT, 0xEAEC7F79),
        (Workload.SWEEP, 0x0B80261F),
        (Workload.TEXT, 0x96B9F06F),
    ],
)
def test_a_seed_means_the_same_ram_in_every_version(workload: Workload, checksum: int) -> None:
    assert zlib.crc32(render(guest(workload, 300, seed=7), 2).tobytes()) == checksum


def test_scattering_is_one_to_one() -> None:
    for size in (*range(1, 70), 255, 256, 257, 1000, 65_537):
        key = mix(np.array([size], np.uint64))
        places = scatter(np.arange(size, dtype=np.uint64), size, key)
        assert np.array_equal(np.sort(places), np.arange(size)), size


def test_scattering_depends_on_the_key() -> None:
    numbers = np.arange(1000, dtype=np.uint64)
    one, other = (scatter(numbers, 1000, np.array([key], np.uint64)) for key in (1, 2))
    assert (one == other).mean() < 0.05


def test_what_a_program_keeps_does_not_grow_with_ram() -> None:
    small, large = (Program(guest(Workload.TEXT, pages)) for pages in (1, 1 << 40))
    sizes = [
        sum(array.nbytes for array in vars(program).values() if isinstance(array, np.ndarray))
        for program in (small, large)
    ]
    assert sizes[0] == sizes[1] <= 2 * MIB
    assert small._batch.nbytes == BATCH_PAGES * 4 * KIB
