"""Experiments with domains: saved by us and by virsh in turn, and restored; each of them runs on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support.libvirt_domains import virsh

from parallel_fixedram.core.errors import HostError
from parallel_fixedram.experiments import libvirt_guest
from parallel_fixedram.experiments.runner import run_scenario
from parallel_fixedram.experiments.scenario import parse_scenario

DOMAIN = 'qemu = { size = "64MiB", data = 0.4, ram = "private", dirty_rate = "1MiB", domain = true }'
WAYS = f"""
name = "s"
question = "Why?"
repeats = 1
warm_up = 0
[[case]]
way = "ours"
{DOMAIN}
capture = ["snapshot", "compare"]
[[case]]
way = "pause-floor"
{DOMAIN}
[[case]]
way = "virsh-save"
{DOMAIN}
image_format = ["raw", "sparse"]
[[case]]
way = "virsh-save"
{DOMAIN}
channels = 2
direct_io = "on"
[[case]]
way = "virsh-restore"
{DOMAIN}
image_format = ["raw", "sparse", "ours"]
direct_io = ["off", "on"]
"""


def test_a_domain_is_saved_and_restored_in_every_way_and_nothing_of_it_is_left(tmp_path: Path) -> None:
    run_set = run_scenario(parse_scenario(WAYS, "s.toml"), folder=str(tmp_path), output=str(tmp_path / "r.json"))
    assert run_set.missing == ()
    assert os.listdir(tmp_path) == ["r.json"]
    assert {sample.verified for case in run_set.cases for sample in case.samples} == {"digests", "loaded", "no"}
    for case in run_set.cases:
        [sample] = case.samples
        assert (sample.seconds.pause is None) == (case.parameters["way"] == "virsh-restore")
        assert sample.seconds.total >= (sample.seconds.pause or 0.0)
        assert sample.bytes.file is None or sample.bytes.file >= sample.bytes.data
    assert "bench" not in virsh("list", "--name", "--all")


def test_where_no_libvirt_answers_domains_are_missing_and_it_is_said_why(monkeypatch: pytest.MonkeyPatch) -> None:
    why = libvirt_guest.why_no_libvirt.__wrapped__  # not what it said before
    assert why() is None
    monkeypatch.setattr(libvirt_guest, "OLDEST_LIBVIRT", (99, 0))
    assert "has no sparse images" in str(why())

    def silent(*_arguments: str) -> str:
        raise HostError("no answer")

    monkeypatch.setattr(libvirt_guest, "virsh", silent)
    assert "no libvirtd answers" in str(why())
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert "are root's" in str(why())
