"""The simulation in cases that can be reckoned by hand, and its fit to results that it made itself."""

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.cli import call, done, refused
from support.run_sets import case, run_set, sample
from support.synthetic import channels as made_up_channels
from support.synthetic import gaps, pauses

from parallel_fixedram.core.shards import plan_shards
from parallel_fixedram.experiments import results
from parallel_fixedram.experiments.calibrate_simulation import calibrated
from parallel_fixedram.experiments.extrapolate import HypotheticalSave, extrapolate
from parallel_fixedram.experiments.metrics import Metric
from parallel_fixedram.experiments.shard_calls import (
    MIN_PART_PAGES,
    PlannedWrites,
    first_pages,
    large_guest,
    planned,
    random_pages,
)
from parallel_fixedram.experiments.simulate import (
    BANDWIDTH,
    LOCK,
    PROCESSORS,
    QUEUE,
    WAITING,
    Device,
    Host,
    simulate,
)

MIB = 1 << 20
PLENTY = Host(processors=1000)


def of_sizes(shards):
    """Shards of writes of these many bytes, one behind the other in the file."""
    ends = itertools.accumulate(size for sizes in shards for size in sizes)
    return PlannedWrites(shards=tuple(tuple((next(ends) - size, size) for size in sizes) for sizes in shards))


def equal_calls(shards, calls, size=MIB):
    return of_sizes([[size] * calls] * shards)


def test_one_channel_takes_every_call_with_its_bytes_one_after_the_other():
    a, b = 1e-3, 1e-9
    for size in (4096, MIB):
        found = simulate(
            equal_calls(7, 5, size), channels=1, device=Device(call_seconds=a, byte_seconds=b), host=PLENTY
        )
        assert found.seconds == pytest.approx(35 * (a + b * size))
        assert found.calls == 35


def test_one_channel_also_looks_at_every_byte_copies_it_and_computes_its_digest():
    host = Host(
        processors=4, scan_byte_seconds=1e-9, copy_byte_seconds=2e-9, copy_call_seconds=1e-3, digest_byte_seconds=3e-9
    )
    found = simulate(equal_calls(2, 10), channels=1, device=Device(byte_seconds=4e-9), host=host)
    assert found.seconds == pytest.approx(20 * (1e-3 + MIB * 10e-9))
    assert found.bottleneck == WAITING


@pytest.mark.parametrize("channels", [2, 3, 8])
def test_a_device_without_a_queue_is_serial_however_many_channels_there_are(channels):
    device = Device(call_seconds=1e-3, byte_seconds=1e-9, queue_depth=1)
    one = simulate(equal_calls(24, 4), channels=1, device=device, host=PLENTY)
    many = simulate(equal_calls(24, 4), channels=channels, device=device, host=PLENTY)
    assert many.seconds == pytest.approx(one.seconds)
    assert many.busy[QUEUE] == pytest.approx(1)


def test_a_deep_queue_hides_what_a_call_takes_until_the_bandwidth_is_used_up():
    device = Device(call_seconds=1e-3, byte_seconds=1e-10)
    seconds = [simulate(equal_calls(64, 8, 4096), channels=n, device=device, host=PLENTY).seconds for n in (1, 2, 4, 8)]
    for before, after in itertools.pairwise(seconds):
        assert after == pytest.approx(before / 2, rel=0.01)
    device = replace(device, byte_seconds=1e-6)
    found = simulate(equal_calls(64, 8, 4096), channels=8, device=device, host=PLENTY)
    assert found.seconds == pytest.approx(64 * 8 * 4096e-6, rel=0.01)
    assert found.bottleneck == BANDWIDTH


def test_a_queue_that_is_full_is_what_more_channels_wait_for():
    device = Device(call_seconds=1e-3, queue_depth=4)
    four, eight = (simulate(equal_calls(64, 8, 4096), channels=n, device=device, host=PLENTY) for n in (4, 8))
    assert eight.seconds == pytest.approx(four.seconds, rel=0.01)
    assert eight.bottleneck == QUEUE


@pytest.mark.parametrize("channels", [2, 8])
def test_under_a_lock_more_channels_gain_nothing_but_what_is_done_outside(channels):
    host = Host(processors=16, copy_byte_seconds=1e-9, lock=True)
    one, many = (simulate(equal_calls(32, 4), channels=n, device=Device(), host=host) for n in (1, channels))
    assert many.seconds == pytest.approx(one.seconds)
    assert many.bottleneck == LOCK
    host = replace(host, scan_byte_seconds=1e-9)
    one, many = (simulate(equal_calls(32, 4), channels=n, device=Device(), host=host) for n in (1, channels))
    assert many.seconds == pytest.approx(one.seconds / 2, rel=0.05)
    assert simulate(equal_calls(32, 4), channels=2, device=Device(), host=replace(host, lock=False)).busy[LOCK] == 0


def test_devices_scale_until_the_processors_are_the_limit():
    host = Host(processors=4, scan_byte_seconds=1e-9)  # 4 bytes a nanosecond
    seconds, names = [], []
    for count in (1, 2, 4, 8):
        device = Device(byte_seconds=1e-9, count=count, stripe_bytes=MIB)
        found = simulate(equal_calls(64, 16), channels=16, device=device, host=host)
        seconds.append(found.seconds)
        names.append(found.bottleneck)
    assert seconds[1] == pytest.approx(seconds[0] / 2, rel=0.1)
    assert seconds[2] == pytest.approx(seconds[0] / 4, rel=0.25)
    assert seconds[3] == pytest.approx(1024 * MIB * 1e-9 / 4, rel=0.1)
    assert names == [BANDWIDTH, BANDWIDTH, names[2], PROCESSORS]


def test_a_call_over_several_stripes_keeps_all_of_their_devices_busy():
    device = Device(byte_seconds=1e-9, count=4, stripe_bytes=MIB)
    found = simulate(equal_calls(1, 10, 4 * MIB), channels=1, device=device, host=PLENTY)
    assert found.seconds == pytest.approx(10 * MIB * 1e-9)


def test_processors_are_shared_by_the_workers():
    host = Host(processors=2, scan_byte_seconds=1e-9)
    seconds = [simulate(equal_calls(12, 4), channels=n, device=Device(), host=host).seconds for n in (1, 2, 3, 6)]
    work = 48 * MIB * 1e-9
    assert seconds == pytest.approx([work, work / 2, work / 2, work / 2])


def test_nothing_to_write_takes_no_time():
    found = simulate(PlannedWrites(shards=()), channels=3, device=Device(), host=PLENTY)
    assert (found.seconds, found.calls, found.bottleneck) == (0, 0, WAITING)
    assert set(found.busy.values()) == {0.0}


def test_a_part_stands_for_the_whole():
    device = Device(byte_seconds=1e-9)
    whole, part = equal_calls(8, 4), equal_calls(4, 4)
    assert simulate(whole, channels=1, device=device, host=PLENTY).seconds == pytest.approx(
        simulate(replace(part, share=0.5), channels=1, device=device, host=PLENTY).seconds
    )


sizes = st.lists(st.lists(st.integers(1, 64).map(lambda pages: pages * 4096), min_size=1, max_size=6), max_size=12)
costs = st.sampled_from([0.0, 1e-10, 1e-9])


@given(
    shards=sizes,
    channels=st.integers(1, 9),
    device=st.builds(
        Device,
        call_seconds=st.sampled_from([0.0, 1e-5]),
        byte_seconds=costs,
        queue_depth=st.integers(1, 4),
        count=st.integers(1, 3),
        stripe_bytes=st.just(1 << 16),
    ),
    host=st.builds(
        Host,
        processors=st.integers(1, 4),
        scan_byte_seconds=costs,
        copy_byte_seconds=costs,
        digest_byte_seconds=costs,
        lock=st.booleans(),
    ),
)
def test_nothing_is_busier_than_all_the_time_and_every_call_is_made(shards, channels, device, host):
    workload = of_sizes(shards)
    found = simulate(workload, channels=channels, device=device, host=host)
    assert found == simulate(workload, channels=channels, device=device, host=host)
    assert all(0 <= share <= 1 for share in found.busy.values())
    assert found.calls == workload.calls
    bytes_ = workload.bytes
    work = bytes_ * (host.scan_byte_seconds + host.copy_byte_seconds + host.digest_byte_seconds)
    least = max(work / host.processors, bytes_ * device.byte_seconds / device.count)
    most = work + bytes_ * device.byte_seconds + found.calls * device.call_seconds * 2
    assert least * (1 - 1e-9) <= found.seconds <= most * (1 + 1e-9) + 1e-12


def test_planned_calls_are_those_of_the_real_shards():
    dirty = random_pages(100_000, 20_000, seed=3)
    for channels in (1, 4):
        workload = planned(dirty, channels=channels)
        assert [sum(size for _, size in shard) // 4096 for shard in workload.shards] == [
            shard.pages for shard in plan_shards([dirty], workers=channels)
        ]
        pages = sorted(p for shard in workload.shards for at, n in shard for p in range(at // 4096, (at + n) // 4096))
        assert pages == [page for run in dirty.ranges() for page in range(run.first, run.end)]


def test_gaps_are_written_along_where_they_may_be_read_and_writes_end_with_a_window():
    everything, dirty = first_pages(1024, 1024), random_pages(1024, 512, seed=1)
    assert planned(dirty, channels=1, max_gap_pages=64).calls == planned(dirty, channels=1).calls
    joined = planned(dirty, everything, channels=1, max_gap_pages=64, window_pages=512)
    assert planned(dirty, channels=1).calls > 100
    assert joined.calls == 3  # two shards, one of them longer than a window
    assert planned(everything, channels=1, window_pages=256).calls == 4


@pytest.mark.parametrize("dirty", [1.0, 0.5, 0.01, 1e-6])
def test_of_a_guest_that_is_too_large_only_a_part_is_planned(dirty):
    pages = (1 << 40) // 4096
    workload = large_guest(pages, dirty, channels=8, max_gap_pages=0, window_pages=256)
    assert workload.share <= MIN_PART_PAGES / pages
    assert workload.bytes / workload.share == pytest.approx(pages * 4096 * dirty, rel=0.1 if dirty > 1e-5 else 1)
    assert workload.calls < 40_000


@pytest.mark.parametrize("pages", [1, 63, 64, 65, 1000])
def test_small_guests_are_planned_as_a_whole(pages):
    workload = large_guest(pages, 1.0, channels=3, max_gap_pages=16, window_pages=512)
    assert (workload.share, workload.bytes) == (1, pages * 4096)


def simulated_results(*, direct, device, host, channels=(1, 2, 4), fixed=0.0):
    """Results that the simulation itself made, as if they were measured."""
    way = "on" if direct else "off"
    common = {"guest": "dense,size=256MiB", "file_system": "folder", "direct_io": way}
    pages = first_pages(1 << 16, 1 << 16)

    def made(name, parameters, seconds):
        phases = {"prepare": fixed} if parameters["way"] == "ours" else None
        size = {"ram": 256 * MIB, "data": 256 * MIB, "written": 256 * MIB}
        one = [
            sample(n, seconds * 1.5, seconds={"last_write": seconds, "phases": phases}, bytes=size) for n in range(5)
        ]
        return replace(case(name, []), parameters=parameters, samples=tuple(one))

    cases = []
    for number in channels:
        workload = planned(pages, channels=number, window_pages=512 if direct else 256)
        seconds = fixed + simulate(workload, channels=number, device=device, host=host).seconds
        parameters = {"way": "ours", "channels": number, "gap_pages": "auto", **common}
        cases.append(made(f"ours guest=dense,size=256MiB channels={number} direct_io={way}", parameters, seconds))
        quick = replace(host, scan_byte_seconds=0.0)
        seconds = simulate(equal_calls(256, 1), channels=number, device=device, host=quick).seconds
        parameters = {"way": "fio", "channels": number, "block_size": MIB, **common}
        cases.append(made(f"fio guest=dense,size=256MiB channels={number} direct_io={way}", parameters, seconds))
    return run_set(*cases)


@pytest.mark.parametrize("fixed", [0.0, 0.05])
def test_a_fit_to_a_simulated_direct_device_predicts_its_other_channels(fixed):
    device = Device(call_seconds=1e-4, byte_seconds=5e-10)
    host = Host(processors=2, scan_byte_seconds=3e-10)
    [found], left = calibrated(simulated_results(direct=True, device=device, host=host, fixed=fixed))
    assert left == []
    assert found.metric is Metric.LAST_WRITE
    assert [point.channels for point in found.points] == [1, 2, 4]
    assert [point.fitted for point in found.points] == [True, False, False]
    assert [point.error for point in found.points] == pytest.approx([0, 0, 0], abs=0.03)
    assert found.device.byte_seconds == pytest.approx(5e-10, rel=0.05)


def test_a_fit_to_a_simulated_page_cache_predicts_its_other_channels():
    host = Host(processors=2, scan_byte_seconds=3e-10, copy_byte_seconds=4e-10, lock=True)
    [found], _ = calibrated(simulated_results(direct=False, device=Device(), host=host))
    assert [point.error for point in found.points] == pytest.approx([0, 0, 0], abs=0.03)
    assert found.host.lock
    assert found.host.copy_byte_seconds == pytest.approx(4e-10, rel=0.05)
    assert found.points[-1].bottleneck in (LOCK, PROCESSORS)


def test_what_a_save_chose_is_taken_from_its_report():
    device, host = Device(call_seconds=1e-4, byte_seconds=5e-10), Host(processors=2, scan_byte_seconds=3e-10)
    measured = simulated_results(direct=True, device=device, host=host)
    assert calibrated(measured)[0][0].notes == ("gap_pages=auto taken as 16",)
    report = {"choice": {"gap_pages": 4, "shard_pages": 1024}}
    told = replace(
        measured,
        cases=tuple(
            replace(each, samples=tuple(replace(one, report=report) for one in each.samples)) for each in measured.cases
        ),
    )
    assert calibrated(told)[0][0].notes == ()
    assert [len(planned(first_pages(4096, 4096), channels=1, shard_pages=n).shards) for n in (1024, 4096)] == [4, 1]


def test_a_device_that_does_otherwise_shows_in_the_error():
    device, host = Device(call_seconds=1e-4, byte_seconds=5e-10), Host(processors=2, scan_byte_seconds=3e-10)
    measured = simulated_results(direct=True, device=device, host=host)
    slow = next(each for each in measured.cases if each.id.startswith("ours") and "channels=4" in each.id)
    samples = tuple(
        replace(each, seconds=replace(each.seconds, last_write=(each.seconds.last_write or 0) * 2))
        for each in slow.samples
    )
    [found], _ = calibrated(measured.with_case(replace(slow, samples=samples)))
    assert found.points[-1].error == pytest.approx(-0.5, abs=0.03)


def test_what_the_results_leave_open_is_not_guessed_but_named():
    whole = made_up_channels()
    without_fio = replace(whole, cases=tuple(each for each in whole.cases if each.parameters["way"] != "fio"))
    done_, left = calibrated(without_fio)
    assert done_ == []
    assert [each.why for each in left] == [
        f"no {kind} fio with one process on this file system, which tells what a call takes"
        for kind in ("direct", "buffered")
    ]
    assert calibrated(gaps()) == ([], [])
    assert {each.why for each in calibrated(pauses())[1]} == {"which pages of a QEMU guest hold data is not known"}
    assert "processors" in calibrated(replace(whole, host={}))[1][0].why
    two = replace(whole, cases=tuple(each for each in whole.cases if each.parameters.get("channels") != 1))
    assert {each.why for each in calibrated(two)[1]} == {"no case with one channel to fit"}


def test_the_curve_ends_with_the_channels_that_were_asked_for():
    target = HypotheticalSave(ram=1 << 34, channels=6, direct=True, device=Device(byte_seconds=1e-9), host=PLENTY)
    assert [point.channels for point in extrapolate(target)] == [1, 2, 4, 6]
    assert [point.channels for point in extrapolate(replace(target, channels=1))] == [1]
    assert extrapolate(target)[-1].simulated.seconds == pytest.approx((1 << 34) * 1e-9)


def test_the_command_says_plainly_that_it_simulates():
    out = done(call("bench", "simulate", "--ram", "1TiB", "--channels", "32", "--devices", "8")).out
    assert "SIMULATION, not a measurement" in out
    assert "assumed, not fitted to anything" in out
    assert "with 32 channels the simulated save would wait for: device bandwidth" in out
    assert "a part of the save was simulated call by call" in out


def test_the_command_holds_the_simulation_against_results(tmp_path):
    path = tmp_path / "channels.json"
    results.store(made_up_channels(), str(path))
    out = done(call("bench", "simulate", path, "--ram", "4GiB", "--channels", "4")).out
    assert "measured against simulated, time until the last page is written: ours guest=dense,size=1GiB" in out
    assert "fitted; bottleneck" in out
    assert "error " in out
    found = done(call("bench", "simulate", path, "--ram", "4GiB", "--channels", "4", "--json")).json
    assert found["simulation"] is True
    assert len(found["calibrations"]) == 2
    assert found["parameters"].startswith("fitted to ours")
    assert [point["channels"] for point in found["points"]] == [1, 2, 4]
    changed = done(call("bench", "simulate", path, "--device-rate", "1GiB", "--ram", "1GiB", "--json")).json
    assert changed["parameters"].endswith("changed by options")
    assert changed["target"]["device"]["byte_seconds"] == 2**-30


def test_results_that_cannot_be_fitted_are_a_wrong_request(tmp_path):
    path = tmp_path / "gaps.json"
    results.store(gaps(), str(path))
    refused(call("bench", "simulate", path), 2, "no direct series of channels")


@pytest.mark.parametrize(
    "option", ["--ram=0", "--ram=x", "--dirty=0", "--dirty=2", "--dirty=nan", "--channels=0", "--channels=1e9",
               "--devices=-1", "--call-seconds=-1", "--call-seconds=inf", "--queue-depth=x"]
)  # fmt: skip
def test_options_that_make_no_sense_are_refused(option):
    refused(call("bench", "simulate", option), 2, option.partition("=")[0])
