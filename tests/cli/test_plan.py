"""What a save would do and did: ``plan``, ``--channels auto``, ``--trace``, ``--cache``."""

import json
import os
import re

import pytest
from support.cli import call, done, refused, run, unchanged, untouched, without_override
from support.pictures import PAGE

GUEST = ["--guest", "dense,size=8MiB"]
AUTO = ["--channels", "auto", "--experimental-multifd"]


@pytest.fixture(autouse=True)
def known(tmp_path_factory, monkeypatch):
    """Where commands keep what they have measured; nothing yet."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


@pytest.mark.usefixtures("four_pay")
def test_a_plan_says_how_why_how_long_and_by_what_model(tmp_path):
    with untouched(tmp_path):
        out = done(call("plan", tmp_path / "new.mr", *GUEST, *AUTO)).out
    assert out.splitlines() == [
        f"{tmp_path / 'new.mr'}: 8.0 MiB of RAM, nothing is written",
        "  data      2048 pages that may hold something, in 1 run",
        "  writes    5 of 8.0 MiB in all",
        "  how       4 channels, direct I/O, shards of 256 pages",
        "  because   direct: 0.008 s to stable storage predicted, 0.042 s through the page cache",
        "  because   4 channels: 0.008 s predicted, 0.034 s with 1, 0.017 s with 2",
        "  because   gaps of up to 0 pages are bridged: a call costs as much as 2.0 KiB (told)",
        "  predicted 0.008 s to the last write",
        "            0.008 s to stable storage, digests included",
        "  model     told; what a write call and a byte take:",
        "            direct   1 channel     4.0 us and 4.000 ns",
        "            direct   2 channels    2.0 us and 2.000 ns",
        "            direct   4 channels    1.0 us and 1.000 ns",
        "            buffered 1 channel     4.0 us and 4.000 ns",
        "            buffered 2 channels    2.0 us and 2.000 ns",
        "            buffered 4 channels    1.0 us and 1.000 ns",
        "            buffered, synced       8.0 us and 8.000 ns",
    ]


@pytest.mark.usefixtures("four_pay")
def test_a_save_of_as_many_channels_as_pay_says_so_as_its_plan_did(tmp_path):
    planned = done(call("plan", tmp_path / "new.mr", *GUEST, *AUTO)).out.splitlines()
    saved = done(call("save", tmp_path / "new.mr", *GUEST, *AUTO)).out.splitlines()
    assert [line for line in saved if line.startswith(("  how", "  because"))] == planned[3:7]
    report = done(call("save", tmp_path / "b.mr", *GUEST, *AUTO, "--json")).json
    assert (report["channels"], len(report["workers"])) == (4, 4)
    assert report["capabilities"] == {"fixed-ram": True, "multifd": True}
    done(call("verify", tmp_path / "new.mr"))


def test_a_plan_measures_where_it_is_told_to_and_the_next_command_knows(tmp_path, known):
    with unchanged(tmp_path):
        first = done(run("plan", tmp_path / "new.mr", *GUEST, "--calibrate"))
        assert "  model     measured; what a write call and a byte take:\n" in first.out
        assert os.listdir(known) == ["parallel-fixedram"]
        again = done(run("plan", tmp_path / "new.mr", *GUEST))
    assert "  model     cached; " in again.out
    why = re.compile(r"\((measured|cached)\)")
    assert why.findall(first.out) == ["measured"]
    assert why.findall(again.out) == ["cached"]


@pytest.mark.parametrize(
    ("capture", "how"),
    [
        ("compare", "page cache while the guest runs, then what changed"),
        ("rounds", "page cache in rounds"),
        ("stopped", "page cache"),
    ],
)
def test_a_plan_for_a_guest_that_runs_says_how_and_that_it_would_stand_still(tmp_path, capture, how):
    argv = ["--guest", "hot,size=4MiB", "--direct-io", "off", "--capture", capture]
    with untouched(tmp_path):
        out = done(call("plan", tmp_path / "new.mr", *argv)).out
    assert f"  how       1 channel, {how}, shards of " in out
    assert " s to the last write: the guest would stand still for about that long\n" in out


def test_a_plan_for_ram_of_ones_own_leaves_its_holes_alone(tmp_path):
    with open(tmp_path / "ram", "wb") as ram:
        ram.truncate(1000 * PAGE)
        os.pwrite(ram.fileno(), b"x", 10 * PAGE)
        before = os.fstat(ram.fileno()).st_blocks
        with untouched(tmp_path):
            out = done(call("plan", tmp_path / "new.mr", "--ram", f"ram={tmp_path / 'ram'}")).out
        assert os.fstat(ram.fileno()).st_blocks == before
    assert "  data      1 pages that may hold something, in 1 run\n" in out


def test_a_plan_may_be_for_a_file_that_exists(tmp_path):
    (tmp_path / "old.mr").write_bytes(b"old")
    with untouched(tmp_path):
        done(call("plan", tmp_path / "old.mr", *GUEST))


def test_a_plan_that_cannot_be_made_ends_as_the_save_would(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    with untouched(tmp_path):
        refused(call("plan", tmp_path / "fifo", *GUEST), 2, "Migration requires seekable transport")
        refused(call("plan", tmp_path, *GUEST), 2, "is a folder\n")
        refused(call("plan", tmp_path / "new.mr"), 2, "exactly one source is needed")
        refused(call("plan", tmp_path / "new.mr", "--ram", "a=nowhere"), 2, "cannot open guest RAM 'nowhere'")
        refused(call("plan", tmp_path / "new.mr", "--guest", "busy"), 2, "unknown guest workload 'busy'")
        refused(call("plan", tmp_path / "new.mr", "--qmp", tmp_path / "no"), 4, "cannot connect to QMP socket")
        refused(call("plan", tmp_path / "new.mr", *GUEST, "--channels", "2"), 2, "incompatible with multifd\n")
        for option in ("--overwrite", "--durability=none", "--cache=drop", "--trace=t"):
            refused(call("plan", tmp_path / "new.mr", *GUEST, option), 2, f"unrecognized arguments: {option}")


SHARD = {
    "worker": int,
    "round": int,
    "block": int,
    "first_page": int,
    "pages": int,
    "offset": int,
    "bytes": int,
    "started": float,
    "ended": float,
    "write_bins": list,
}


def test_a_trace_has_one_object_a_line_for_every_shard(tmp_path):
    argv = [*GUEST, "--channels", "2", "--experimental-multifd", "--trace", tmp_path / "trace", "--json"]
    report = done(call("save", tmp_path / "new.mr", *argv)).json
    lines = [json.loads(line) for line in (tmp_path / "trace").read_text().splitlines()]
    assert all({name: type(value) for name, value in line.items()} == SHARD for line in lines)
    assert sum(worker["shards"] for worker in report["workers"]) == len(lines)
    pages = [page for line in lines for page in range(line["first_page"], line["first_page"] + line["pages"])]
    assert sorted(pages) == list(range(2048))
    place = report["blocks"][0]["pages_offset"]
    assert all(line["offset"] == place + line["first_page"] * PAGE for line in lines)
    assert all(0 < line["started"] <= line["ended"] <= report["seconds"]["total"] for line in lines)
    assert sum(line["bytes"] for line in lines) == report["bytes"]["written"]
    assert all(any(line["write_bins"]) == (line["bytes"] > 0) for line in lines)


def test_a_trace_of_nothing_is_an_empty_file(tmp_path):
    done(call("save", tmp_path / "new.mr", "--guest", "zero,size=1MiB", "--trace", tmp_path / "trace"))
    assert (tmp_path / "trace").read_bytes() == b""


def test_a_trace_that_cannot_be_written_is_an_error_after_a_save_that_is_done(tmp_path):
    (tmp_path / "folder").mkdir(mode=0o500)
    for number, (place, reason) in enumerate(
        [("folder", "is a directory"), ("no/trace", "no such file or directory"), ("folder/trace", "permission denied")]
    ):
        image = tmp_path / f"{number}.mr"
        result = run("save", image, *GUEST, "--trace", tmp_path / place, preexec_fn=without_override)
        message = f"the save is done, but its trace cannot be written to '{tmp_path / place}': {reason}\n"
        refused(result, 5, message, "")
        assert "8.0 MiB" in done(call("verify", image)).out
    assert os.listdir(tmp_path / "folder") == []


def test_a_save_that_fails_leaves_no_trace(tmp_path):
    with unchanged(tmp_path):
        refused(call("save", tmp_path / "no" / "new.mr", *GUEST, "--trace", tmp_path / "trace"), 2, "no such file")


@pytest.mark.parametrize("name", ["new.mr", "./sub/../new.mr", "link"])
def test_a_trace_does_not_replace_the_file_that_is_saved(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    (tmp_path / "link").symlink_to("new.mr")
    for target in ("new.mr", "file:new.mr,offset=4K", tmp_path / "new.mr"):
        with untouched(tmp_path):
            refused(call("save", target, *GUEST, "--trace", name), 2, "would replace the file that is saved\n")


@pytest.mark.parametrize("direct_io", ["on", "off"])
def test_a_file_that_is_dropped_from_the_page_cache_is_whole_and_not_cached(tmp_path, direct_io):
    argv = [*GUEST, "--direct-io", direct_io]
    kept = done(call("save", tmp_path / "kept.mr", *argv, "--cache", "keep", "--json")).json["bytes"]["cached"]
    dropped = done(call("save", tmp_path / "dropped.mr", *argv, "--cache", "drop", "--json")).json["bytes"]["cached"]
    if kept is None or os.statvfs(tmp_path).f_fsid == os.statvfs("/dev/shm").f_fsid:
        pytest.skip("the kernel does not tell what is cached, or the temporary folder is memory")
    assert dropped == 0 < kept
    assert (kept >= 8 << 20) == (direct_io == "off")
    done(call("diff", tmp_path / "kept.mr", tmp_path / "dropped.mr"))
    assert ", 0 B in the page cache" in done(call("save", tmp_path / "c.mr", *argv, "--cache", "drop")).out
