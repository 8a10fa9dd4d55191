"""The demo: the whole story, told truly, and nothing left of it."""

import subprocess
import sys

import pytest
from support.cli import call, done, run, tmpfs, unchanged
from support.cli import refused as failed
from support.qemu_tools import with_own_mounts


def test_the_demo_tells_the_whole_story_and_leaves_nothing_behind(tmp_path):
    with unchanged(tmp_path):
        result = done(run("demo", "--size", "64MiB", "--folder", tmp_path))
    assert result.err == ""
    lines = result.out.splitlines()
    assert lines[0] == (
        "1. fixed-ram with multifd: refused, as by QEMU: 'Fixed-ram migration is incompatible with multifd'"
    )
    assert lines[1].startswith("2. guest ")
    assert " has 64.0 MiB of RAM and dirtied half of it; saved to " in lines[1]
    assert lines[2].endswith(" on disk")
    rows = [line.split() for line in lines[3:6]]
    assert [row[0] for row in rows] == ["1", "2", "4"]
    assert [row[5:7] for row in rows] == [["8192", "8192"]] * 3
    assert lines[6].endswith("the guest's and the restored RAM compared byte by byte: equal")
    assert lines[7].startswith("3. saved again while it ran and dirtied: ")
    assert "on disk " in lines[8]
    assert lines[9].startswith("done in ")
    assert len(lines) == 10


def test_the_demo_as_one_json_object(tmp_path):
    with unchanged(tmp_path):
        report = done(call("demo", "--size", "8MiB", "--folder", tmp_path, "--json")).json
    assert list(report) == ["schema", "version", "verb", "refusal", "saves", "live", "sequential_bytes"]
    assert (report["verb"], report["refusal"]) == ("demo", "Fixed-ram migration is incompatible with multifd")
    assert [save["channels"] for save in report["saves"]] == [1, 2, 4]
    assert {save["blocks"][0]["data_pages"] for save in report["saves"]} == {1024}
    assert report["live"]["channels"] == 2
    assert report["sequential_bytes"] > 1024 * 4096


def test_a_demo_without_room_for_its_files_fails_and_leaves_nothing_behind(tmp_path):
    with tmpfs(tmp_path / "small", "size=2m") as small, unchanged(small):
        result = call("demo", "--size", "16MiB", "--folder", small, "--json")
        failed(result, 5, "has 2.0 MiB free, the demo's files take up to 28.0 MiB: no space left on device\n", "--size")


def test_a_demo_takes_no_room_in_dev_shm(tmp_path):
    """Containers keep it small, or read-only."""
    where = "mount -t tmpfs -o ro tmpfs /dev/shm && exec"
    command = f"{where} {sys.executable} -m parallel_fixedram demo --size 4MiB --folder {tmp_path}"
    made = subprocess.run([*with_own_mounts(), "sh", "-c", command], capture_output=True, text=True, check=False)
    if "mount:" in made.stderr:
        pytest.skip(f"mounting is not permitted here: {made.stderr.strip()}")
    assert made.returncode == 0, made.stderr
    assert "byte by byte: equal" in made.stdout


@pytest.mark.parametrize("size", ["0", "4095", "6K"])
def test_a_demo_of_a_guest_that_cannot_be_says_so(tmp_path, size):
    with unchanged(tmp_path):
        result = call("demo", "--size", size, "--folder", tmp_path, "--json")
        failed(result, 2, "guest size must be a positive multiple of 4096 bytes, got ")


def test_the_demo_notices_when_what_it_restored_is_not_what_was_saved(tmp_path, monkeypatch):
    from parallel_fixedram.verbs import verify

    class Wrong:
        ok = False

    monkeypatch.setattr(verify, "verify", lambda *args, **kwargs: Wrong)
    with unchanged(tmp_path):
        result = call("demo", "--size", "4MiB", "--folder", tmp_path, "--json")
        failed(result, 1, "differs from the guest's RAM\n")
