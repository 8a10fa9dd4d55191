"""What a trial of the snapshot has shown holds for this host, kernel, QEMU and accelerator, and for nothing else."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from parallel_fixedram.machines.qemu.trials import Setting

KVM, TCG = Setting(qemu="10.0.2", kvm=True), Setting(qemu="10.0.2", kvm=False)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "parallel-fixedram"


def test_kvm_is_proven_by_a_trial_that_passed() -> None:
    assert "under KVM" in KVM.unproven
    assert KVM.remember(passed=True)
    assert KVM.unproven == ""


@pytest.mark.parametrize("setting", [KVM, TCG])
def test_what_failed_is_not_taken_until_it_has_passed(setting: Setting) -> None:
    assert setting.remember(passed=False)
    assert "wrong pages" in setting.unproven
    assert setting.remember(passed=True)
    assert setting.unproven == ""


def test_without_kvm_no_trial_is_needed() -> None:
    assert TCG.unproven == ""


@pytest.mark.parametrize("other", ["qemu", "accelerator", "kernel", "host"])
def test_with_another_one_nothing_is_known(cache: Path, other: str) -> None:
    setting = TCG if other == "accelerator" else KVM
    assert setting.remember(passed=True)
    if other in ("kernel", "host"):
        (key,) = json.loads((cache / "snapshots.json").read_text())
        host, kernel, *rest = key.split(" ")
        known = Path("/etc/machine-id")
        assert host == (known.read_text().strip() if known.exists() else os.uname().nodename)
        assert kernel == os.uname().release
        theirs = ["another", kernel, *rest] if other == "host" else [host, "7.0", *rest]
        (cache / "snapshots.json").write_text(json.dumps({" ".join(theirs): True}))
    asked = Setting(qemu="11.1.3", kvm=True) if other == "qemu" else KVM
    assert asked.passed is None
    assert "under KVM" in asked.unproven


def test_what_others_have_shown_stays(cache: Path) -> None:
    assert KVM.remember(passed=True)
    assert TCG.remember(passed=False)
    assert (KVM.passed, TCG.passed) == (True, False)


@pytest.mark.parametrize("content", ["", "[]", '{"a": 1}', "\0"])
def test_a_damaged_memory_knows_nothing(cache: Path, content: str) -> None:
    cache.mkdir(parents=True)
    (cache / "snapshots.json").write_text(content)
    assert KVM.passed is None
    assert KVM.remember(passed=True)
    assert KVM.passed is True


def test_what_cannot_be_kept_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/self")
    assert not KVM.remember(passed=True)
