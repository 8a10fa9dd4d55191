"""What the verbs print: one JSON object with the agreed keys, or text with the facts."""

import json
import os
import re

import pytest
from support.cli import call, done, run, untouched
from support.pictures import PAGE, content

from parallel_fixedram.core.reports.diff import DiffReport
from parallel_fixedram.core.reports.plan import PlanReport
from parallel_fixedram.core.reports.restore import RestoreReport
from parallel_fixedram.core.reports.save import SaveReport
from parallel_fixedram.core.reports.verify import VerifyReport
from parallel_fixedram.core.schemas import VERSIONS, from_json
from parallel_fixedram.host.files.page_cache import cached_bytes

BLOCK = {
    "idstr": str,
    "used_length": int,
    "page_size": int,
    "pages": int,
    "data_pages": int,
    "zero_pages": int,
    "bitmap_offset": int,
    "pages_offset": int,
}
HOST = {
    "cpus": int,
    "memory": int,
    "kernel": str,
    "machine": str,
    "python": str,
    "numpy": str,
    "file_system": str,
    "mount_options": str,
}
COST = {"call": float, "byte": float}
COSTS = dict.fromkeys(("1", "2", "4"), COST)
CHOICE = {
    "channels": int,
    "direct_io": bool,
    "gap_pages": int,
    "shard_pages": int,
    "capture": str,
    "why": [str],
    "predicted_write_seconds": float,
    "predicted_stable_seconds": float,
    "measured_write_seconds": float,
    "measured_stable_seconds": float,
    "measured_by_predicted": float,
    "model": {
        "source": str,
        "direct": COSTS,
        "buffered": COSTS,
        "stable": COST,
        "flush": COST,
        "sync": float,
        "direct_sync": float,
        "buffered_sync": float,
        "start": float,
        "reserve": float,
        "overlap": float,
        "window": float,
        "direct_window": float,
        "buffered_window": float,
        "scan_byte": float,
        "digest_page": float,
        "hash_page": float,
    },
}
PLAN = {
    "schema": str,
    "version": int,
    "verb": str,
    "file": str,
    "ram": int,
    "data_pages": int,
    "runs": int,
    "calls": int,
    "bytes": int,
    "waits": bool,
    "choice": CHOICE
    | dict.fromkeys(("measured_write_seconds", "measured_stable_seconds", "measured_by_predicted"), type(None)),
    "host": HOST,
    "seconds": float,
}
SAVE = {
    "schema": str,
    "version": int,
    "verb": str,
    "file": str,
    "machine": str,
    "channels": int,
    "direct_io": bool,
    "capabilities": {"fixed-ram": bool, "multifd": bool},
    "blocks": [BLOCK],
    "rounds": [
        dict.fromkeys(["dirty_pages", "written_pages", "gap_pages", "zero_pages"], int)
        | {"while_running": bool, "seconds": float}
    ],
    "phases": [{"name": str, "started": float, "seconds": float}],
    "seconds": dict.fromkeys(
        [
            "total",
            "prepare",
            "pause",
            "stop",
            "sync_disks",
            "device_state",
            "ram",
            "cont",
            "copy",
            "disks",
            "scan",
            "write",
            "digest",
            "sync",
            "publish",
        ],
        float,
    ),
    "bytes": dict.fromkeys(["ram", "written", "file", "allocated"], int) | {"cached": (int, type(None))},
    "image": str,
    "choice": CHOICE,
    "workers": [{"shards": int, "written_pages": int, "seconds": float}],
    "snapshot": type(None),
    "disks": [dict],
    "host": HOST,
    "notes": [str],
}
RESTORE = {
    "schema": str,
    "version": int,
    "verb": str,
    "file": str,
    "channels": int,
    "direct_io": bool,
    "blocks": [{"idstr": str, "path": str, "used_length": int, "data_pages": int, "zero_pages": int}],
    "left_out": [str],
    "verified": bool,
    "seconds": dict.fromkeys(["total", "read", "write"], float),
    "bytes": int,
}
DIFFERENCE = {"what": str, "idstr": str, "first_page": int, "pages": int, "offset": int}
VERIFY = {
    "schema": str,
    "version": int,
    "verb": str,
    "file": str,
    "ok": bool,
    "quick": bool,
    "digests": bool,
    "ram": [str],
    "loaded_by": type(None),
    "ram_bytes": int,
    "blocks": [BLOCK],
    "stale_pages": int,
    "truncated": bool,
    "bad_pages": int,
    "differences": [DIFFERENCE],
    "warnings": [str],
    "seconds": float,
}
DIFF = {
    "schema": str,
    "version": int,
    "verb": str,
    "file_a": str,
    "file_b": str,
    "equal": bool,
    "differing_pages": int,
    "differences": [DIFFERENCE | {"offset": (int, type(None))}],
    "truncated": bool,
    "only_in_a": [str],
    "only_in_b": [str],
    "not_compared": [{"idstr": str, "length_a": (int, type(None)), "length_b": (int, type(None))}],
    "seconds": float,
}
INSPECT = {
    "schema": str,
    "version": int,
    "verb": str,
    "file": str,
    "size": int,
    "offset": int,
    "stream_end": int,
    "machine": str,
    "target": (str, type(None)),
    "capabilities": [str],
    "uuid": (str, type(None)),
    "page_size": int,
    "ram_ended": bool,
    "vm_description": bool,
    "clone_offset": int,
    "digests": bool,
    "digest": (str, type(None)),
    "blocks": [BLOCK | {"absent": bool, "record_offset": int, "address": (int, type(None))}],
    "devices": [dict],
    "disks": [dict],
    "libvirt": type(None),
    "warnings": [str],
}


def fits(value, shape, where="object"):
    """Hold a JSON value against a shape: exactly these keys, and exactly these types."""
    if isinstance(shape, dict):
        assert sorted(value) == sorted(shape), where
        for name, inner in shape.items():
            fits(value[name], inner, f"{where}.{name}")
    elif isinstance(shape, list):
        assert type(value) is list, where
        for index, item in enumerate(value):
            fits(item, shape[0], f"{where}[{index}]")
    else:
        assert type(value) in (shape if isinstance(shape, tuple) else (shape,)), f"{where}: {value!r}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """``a.mr`` and ``b.mr``: two blocks each, the second one is only in one of them; and their RAM."""
    folder = tmp_path_factory.mktemp("output")
    (folder / "ram").write_bytes(content("A-0b" * 20))
    (folder / "other").write_bytes(content("AZZb" * 20))
    (folder / "rom").write_bytes(content("R"))
    ram, other, rom = (
        f"--ram={name}={folder / path}" for name, path in (("ram", "ram"), ("ram", "other"), ("rom", "rom"))
    )
    done(call("save", folder / "a.mr", ram, rom))
    done(call("save", folder / "b.mr", other))
    return folder


@pytest.fixture
def nothing_known(tmp_path_factory, monkeypatch):
    """No command has measured anything yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.mark.usefixtures("nothing_known")
def test_save_reports_exactly_what_was_agreed(folder, tmp_path):
    argv = ["--ram", f"ram={folder / 'ram'}", "--channels", "2", "--experimental-multifd", "--json"]
    result = done(call("save", tmp_path / "new.mr", *argv))
    report = result.json
    fits(report, SAVE)
    assert (report["verb"], report["file"], report["channels"]) == ("save", str(tmp_path / "new.mr"), 2)
    assert len(report["workers"]) == 2
    assert sum(worker["written_pages"] for worker in report["workers"]) == 40
    (block,) = report["blocks"]
    assert (block["idstr"], block["used_length"], block["page_size"]) == ("ram", 80 * PAGE, PAGE)
    assert (block["pages"], block["data_pages"], block["zero_pages"]) == (80, 40, 40)
    (one,) = report["rounds"]
    assert (one["dirty_pages"], one["written_pages"], one["zero_pages"]) == (80, 40, 40)
    status = os.stat(tmp_path / "new.mr")
    assert report["bytes"]["ram"] == 80 * PAGE
    assert report["bytes"]["written"] == (40 + one["gap_pages"]) * PAGE
    assert report["bytes"]["file"] == status.st_size
    assert (report["choice"]["channels"], report["choice"]["direct_io"]) == (2, report["direct_io"])
    assert report["seconds"]["pause"] == 0.0  # nothing ran
    assert report["seconds"]["total"] > 0
    assert list(json.loads(result.out))[:3] == ["schema", "version", "verb"]
    assert from_json(SaveReport, report).file == str(tmp_path / "new.mr")


@pytest.mark.usefixtures("nothing_known")
def test_plan_reports_exactly_what_was_agreed(folder, tmp_path):
    with untouched(tmp_path):
        report = done(call("plan", tmp_path / "new.mr", "--ram", f"ram={folder / 'ram'}", "--json")).json
    fits(report, PLAN)
    assert (report["verb"], report["file"], report["waits"]) == ("plan", str(tmp_path / "new.mr"), False)
    assert (report["ram"], report["choice"]["channels"]) == (80 * PAGE, 1)
    assert report["choice"]["model"]["source"] == "assumed"
    assert from_json(PlanReport, report).choice.channels == 1


def test_restore_reports_what_it_filled_and_what_it_left_out(folder, tmp_path):
    result = done(call("restore", folder / "a.mr", "--ram", f"ram={tmp_path / 'new'}", "--verify", "--json"))
    fits(result.json, RESTORE)
    assert (result.json["left_out"], result.json["verified"]) == (["rom"], True)
    assert 40 * PAGE <= result.json["bytes"] <= 80 * PAGE  # what lies between two pages may be read along
    assert result.json["blocks"][0]["path"] == str(tmp_path / "new")
    assert from_json(RestoreReport, result.json).left_out == ("rom",)


@pytest.mark.parametrize("more", [[], ["--quick"], ["--ram"], ["--quick", "--ram"]])
def test_verify_reports_what_it_looked_at(folder, more):
    argv = [*more, f"ram={folder / 'ram'}"] if "--ram" in more else more
    report = done(call("verify", folder / "a.mr", "--json", *argv)).json
    quick = "--quick" in more
    fits(report, VERIFY | {"stale_pages": type(None)} if quick else VERIFY)
    assert (report["ok"], report["quick"], report["digests"]) == (True, quick, not quick)
    assert report["ram"] == (["ram"] if "--ram" in more else [])
    assert report["ram_bytes"] == ((folder / "ram").stat().st_size if "--ram" in more else 0)
    assert from_json(VerifyReport, report).ok


def test_verify_reports_differences_and_ends_with_1(folder):
    result = call("verify", folder / "a.mr", "--json", "--ram", f"ram={folder / 'other'}")
    fits(result.json, VERIFY)
    assert (result.code, result.err, result.json["ok"], result.json["bad_pages"]) == (1, "", False, 40)


def test_diff_reports_ranges_and_blocks_of_one_side(folder):
    result = call("diff", folder / "a.mr", folder / "b.mr", "--json")
    assert (result.code, result.err) == (1, "")
    fits(result.json, DIFF)
    assert (result.json["equal"], result.json["differing_pages"]) == (False, 40)
    assert (result.json["only_in_a"], result.json["only_in_b"]) == (["rom"], [])
    assert [(each["first_page"], each["pages"]) for each in result.json["differences"]] == [
        (first, 2) for first in range(1, 80, 4)
    ]
    assert from_json(DiffReport, result.json).truncated is False


def test_inspect_reports_where_everything_lies(folder):
    report = done(call("inspect", folder / "a.mr", "--json")).json
    fits(report, INSPECT)
    assert (report["machine"], report["capabilities"], report["digests"]) == ("parallel-fixedram", ["mapped-ram"], True)
    assert [block["idstr"] for block in report["blocks"]] == ["ram", "rom"]
    assert report["size"] == (folder / "a.mr").stat().st_size
    data = (folder / "a.mr").read_bytes()
    for block, first in zip(report["blocks"], (b"A", b"R"), strict=True):
        assert data[block["pages_offset"] :][:PAGE] == first * PAGE


@pytest.mark.parametrize(
    "argv",
    [
        ["save", "new.mr", "--ram", "ram=ram"],
        ["plan", "a.mr", "--ram", "ram=ram"],
        ["restore", "a.mr", "--ram", "ram=new"],
        ["verify", "a.mr"],
        ["inspect", "a.mr"],
        ["diff", "a.mr", "a.mr"],
        ["caps"],
        ["caps", "fixed-ram"],
    ],
    ids=" ".join,
)
def test_json_is_one_object_with_the_verb_and_nothing_else_on_stdout(folder, tmp_path, monkeypatch, argv):
    monkeypatch.chdir(folder)
    for name in ("new", "new.mr"):
        (folder / name).unlink(missing_ok=True)
    for result in (done(call(*argv, "--json")), done(run("inspect", "a.mr", "--json", cwd=folder))):
        value, end = json.JSONDecoder().raw_decode(result.out)
        assert result.out[end:] == "\n"
        assert value["verb"] in (argv[0], "inspect")
        assert value["schema"].partition(".")[2] in VERSIONS
        assert value["version"] == VERSIONS[value["schema"].partition(".")[2]]
        assert result.err == ""


def test_the_text_of_save_has_the_facts(folder, tmp_path):
    result = done(call("save", tmp_path / "new.mr", "--ram", f"ram={folder / 'ram'}", "--ram", f"rom={folder / 'rom'}"))
    first, *rest = result.out.splitlines()
    assert first == f"{tmp_path / 'new.mr'}: 324 KiB of RAM in 2 RAMBlocks"
    assert " ".join(line.split()[0] for line in rest) == "how because because pages file written save predicted"
    assert rest[0].split(maxsplit=1)[1].startswith(("1 channel, direct I/O, shards", "1 channel, page cache, shards"))
    assert "gaps of up to" in rest[2]
    assert "41 with data, 40 zero" in rest[3]
    assert " in the page cache" in rest[4] or not tells_what_is_cached()
    assert " in 1 round, " in rest[5]
    assert re.fullmatch(r"  predicted \d+\.\d{3} s, measured \d+\.\d{3} s: \d+\.\d{2} times that", rest[7])
    assert "stopped" not in result.out
    live = done(call("save", tmp_path / "live.mr", "--guest", "hot,size=1MiB,steps=1", "--capture", "rounds")).out
    assert "guest stopped for " in live


def tells_what_is_cached():
    fd = os.memfd_create("any")
    try:
        return cached_bytes(fd) is not None
    finally:
        os.close(fd)


def test_what_was_asked_for_needs_no_reason_in_the_text(folder, tmp_path):
    argv = ["--direct-io", "off", "--gap-pages", "3", "--shard-pages", "512", "--channels", "1"]
    for verb in ("plan", "save"):
        result = done(call(verb, tmp_path / "new.mr", "--ram", f"ram={folder / 'ram'}", *argv))
        assert "  how       1 channel, page cache, shards of 512 pages\n" in result.out
        assert "because" not in result.out


def test_the_text_of_the_other_verbs_has_the_facts(folder, tmp_path):
    out = done(call("restore", folder / "a.mr", "--ram", f"ram={tmp_path / 'new'}", "--verify")).out
    assert f"ram -> {tmp_path / 'new'}: 320 KiB, 40 pages with data, 40 zero\nrom: left out" in out
    assert out.endswith("; every page matches its digest\n")
    out = done(call("restore", folder / "a.mr", "--ram", f"ram={tmp_path / 'new'}")).out
    assert out.endswith("; page digests not checked (--verify)\n")

    out = done(call("verify", folder / "a.mr")).out
    assert out == (
        "ram: 320 KiB, 40 of 80 pages present\nrom: 4.0 KiB, 1 of 1 pages present\n"
        f"{folder / 'a.mr'}: ok (structure, digests checked)\n"
    )
    assert done(call("verify", folder / "a.mr", "--quick")).out.endswith(": ok (structure checked)\n")

    out = call("diff", folder / "a.mr", folder / "b.mr").out.splitlines()
    assert out[0].startswith("block 'ram' pages 1-2 at 0x")
    assert out[-2:] == [f"rom: only 4.0 KiB in {folder / 'a.mr'}: not compared", "40 differing pages"]

    out = done(call("inspect", folder / "a.mr")).out
    for fact in ("machine       parallel-fixedram", "capabilities  mapped-ram", "one a page, XXH3-64", "0x100000"):
        assert fact in out


def test_a_path_that_is_not_text_is_printed_byte_by_byte_and_other_characters_as_escapes(tmp_path):
    ascii_only = {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    result = done(run("save", tmp_path / "é.mr", "--guest", "zero,size=4K", env=ascii_only))
    assert result.out.startswith(f"{tmp_path}/\\xe9.mr: 4.0 KiB of RAM")
    broken = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.mr")
    assert done(run("save", broken, "--guest", "zero,size=4K")).out.startswith(f"{broken}: 4.0 KiB of RAM")
    assert done(run("verify", broken, env=ascii_only)).out.endswith(f"{broken}: ok (structure, digests checked)\n")
    assert done(run("verify", broken, "--json")).json["file"] == broken
