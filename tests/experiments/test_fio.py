"""What fio is told to do; a program of that name notes it, so that no test needs fio."""

import json
import stat
from pathlib import Path

import pytest

from parallel_fixedram.core.errors import ContentsDiffer
from parallel_fixedram.experiments.cases import Case
from parallel_fixedram.experiments.measured_guest import MeasuredGuest
from parallel_fixedram.experiments.ways.fio import Fio, FioPages
from parallel_fixedram.experiments.ways.way import Run

SIZE, DATA = 1 << 20, 77 * 4096


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the arguments of each call are; it makes the file, and says that it wrote a MiB a second."""
    place, program = tmp_path / "told", tmp_path / "bin" / "fio"
    program.parent.mkdir()
    program.write_text(
        f"""#!/bin/sh
echo "$@" >> {place}
for each; do case $each in --filename=*) echo x > "${{each#*=}}";; esac; done
echo '{json.dumps({"jobs": [{"write": {"bw_bytes": 1 << 20}}]})}'
"""
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    return place


def run_of(tmp_path: Path, case: Case) -> Run:
    source = MeasuredGuest(ram={}, stands_still=True, size=SIZE, data_bytes=DATA, spec=None)
    return Run(case=case, source=source, path=str(tmp_path / "file"), seed=1, number=0)


def words(told: Path) -> list[set[str]]:
    return [set(line.split()) for line in told.read_text().splitlines()]


def test_single_pages_go_to_places_at_random_of_a_file_as_long_as_ram(tmp_path: Path, told: Path) -> None:
    found = FioPages().run(run_of(tmp_path, Case(way="fio-pages", direct_io="on", queue_depth=64, cache="keep")))
    without, synced = words(told)
    for each, end in ((without, "--end_fsync=0"), (synced, "--end_fsync=1")):
        assert each >= {"--rw=randwrite", "--bs=4096", "--iodepth=64", "--ioengine=libaio", "--direct=1", end}
        assert each >= {f"--size={SIZE}", f"--io_size={DATA}"}
    assert found.seconds.total == pytest.approx(DATA / (1 << 20))
    assert found.bytes.written == DATA


def test_everything_goes_one_after_the_other_by_as_many_processes_as_there_are_channels(
    tmp_path: Path, told: Path
) -> None:
    case = Case(way="fio", direct_io="off", channels=2, block_size=65536, cache="keep")
    Fio().run(run_of(tmp_path, case))
    share = DATA // (2 * 65536) * 65536
    assert words(told)[1] >= {
        *("--rw=write", "--bs=65536", "--ioengine=psync", "--direct=0", "--end_fsync=1", "--numjobs=2"),
        *(f"--size={share}", f"--offset_increment={share}"),
    }


@pytest.mark.parametrize("length", [DATA - 1, SIZE + 1])
def test_a_file_of_another_length_is_no_result(tmp_path: Path, length: int) -> None:
    run = run_of(tmp_path, Case(way="fio-pages", direct_io="on", queue_depth=64, cache="keep"))
    with open(run.path, "wb") as file:
        file.truncate(length)
    with pytest.raises(ContentsDiffer):
        FioPages().verify(run)
