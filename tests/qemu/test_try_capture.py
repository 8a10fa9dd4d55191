"""``try-capture``: snapshots of a QEMU, each checked against its RAM; what they show is all that is left."""

from __future__ import annotations

import importlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
from support.cli import call, done, refused, unchanged
from support.qemu import QemuProcess
from support.snapshots import at_moments, killing, unharmed
from support.watched import require_userfaultfd

from parallel_fixedram.image.instant_copy import InstantCopy

VERB = "try-capture"


@pytest.fixture(autouse=True)
def needed() -> None:
    require_userfaultfd()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(importlib.import_module("parallel_fixedram.verbs.try_capture"), "TRIAL_SNAPSHOTS", 2)
    return tmp_path / "cache" / "parallel-fixedram" / "snapshots.json"


def tried(guest: QemuProcess, folder: Path, *more: str, code: int = 0) -> dict[str, Any]:
    result = call(VERB, "--qmp", guest.monitor_path, "--folder", folder, "--json", *more)
    assert result.code == code, result
    return json.loads(result.out)


def test_each_is_right_and_none_is_kept(ticker: list[str], tmp_path: Path, cache: Path) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    with QemuProcess(*ticker) as guest, unharmed(guest):
        guest.wait_serial("C")
        report = tried(guest, folder, "--count", "2")
        assert os.listdir(folder) == []
    assert (report["passed"], report["wrong_pages"], report["given_up"], report["remembered"]) == (True, 0, 0, True)
    assert report["accelerator"] == "tcg"
    assert len(report["snapshots"]) == 2
    for each in report["snapshots"]:
        assert each["fault_seconds"]["median"] <= each["fault_seconds"]["p99"] <= each["fault_seconds"]["max"]
        assert 0 < each["stop"] + each["cont"] + each["fix"] < each["pause"] < each["total"]
    assert list(json.loads(cache.read_text()).values()) == [True]


def test_fewer_than_enough_show_nothing(ticker: list[str], tmp_path: Path, cache: Path) -> None:
    with QemuProcess(*ticker) as guest:
        guest.wait_serial("C")
        result = done(call(VERB, "--qmp", guest.monitor_path, "--folder", tmp_path, "--count", "1"))
    assert "  pages     0 wrong\n" in result.out
    assert result.out.splitlines()[-1].startswith("passed; not remembered, 20 without a fault are")
    assert not cache.exists()


def test_a_wrong_page_is_found_and_remembered(
    ticker: list[str], tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = InstantCopy.take

    def of_another_instant(self: InstantCopy, *args: Any) -> None:
        real(self, *args)
        os.pwrite(self._memory[0], b"\xff" * 4096, 5 << 20)

    monkeypatch.setattr(InstantCopy, "take", of_another_instant)
    with QemuProcess(*ticker) as guest:
        guest.wait_serial("C")
        report = tried(guest, tmp_path, "--count", "1", code=1)
        assert (report["passed"], report["wrong_pages"], report["remembered"]) == (False, 1, True)
        assert list(json.loads(cache.read_text()).values()) == [False]
        monkeypatch.undo()
        monkeypatch.setenv("XDG_CACHE_HOME", str(cache.parent.parent))
        saved = done(call("save", tmp_path / "file", "--qmp", guest.monitor_path, "--json"))
    assert json.loads(saved.out)["choice"]["capture"] == "compare"
    assert "no snapshot, because a trial on this host found wrong pages" in saved.out


def test_what_came_to_nothing_is_no_wrong_page(
    ticker: list[str], tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    when = at_moments(monkeypatch)
    when("in the pause", killing("_handler"))
    with QemuProcess(*ticker) as guest, unharmed(guest):
        guest.wait_serial("C")
        report = tried(guest, tmp_path, "--count", "2", code=1)
    assert [bool(each["given_up"]) for each in report["snapshots"]] == [True, False]
    assert (report["passed"], report["wrong_pages"], report["given_up"], report["remembered"]) == (False, 0, 1, None)
    assert not cache.exists()


def test_what_cannot_be_tried_is_refused(ticker: list[str], tmp_path: Path) -> None:
    refused(call(VERB), 2, "--qmp SOCKET is needed")
    with QemuProcess(*ticker) as guest, unchanged(tmp_path):
        guest.wait_serial("C")
        refused(call(VERB, "--qmp", guest.monitor_path, "--count", "0"), 2, "0 snapshots, at least 1 is needed")
        refused(call(VERB, "--qmp", guest.monitor_path, "--folder", tmp_path / "none"), 2, "cannot make a folder in")
        guest.stop()
        refused(call(VERB, "--qmp", guest.monitor_path), 4, "the guest stands still")


def test_a_save_can_be_held_against_its_instant(ticker: list[str], tmp_path: Path) -> None:
    with QemuProcess(*ticker) as guest:
        guest.wait_serial("C")
        said = done(call("save", tmp_path / "file", "--qmp", guest.monitor_path, "--check-instant")).out
    assert ", copy for the check " in said
    assert "  checked   every page is what RAM held at that instant\n" in said
