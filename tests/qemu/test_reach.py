"""Monitors as people name them, and QEMUs in namespaces other than ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.cli import call, done, refused, untouched
from support.qemu import QemuProcess
from support.qemu_saved import in_turn
from support.qemu_tools import with_own_mounts

import parallel_fixedram

ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make these namespaces")


@pytest.mark.parametrize("form", ["{}", "unix:{}", "unix:{},server=on,wait=off", "{},server=on,wait=off"])
def test_a_qemu_is_found_by_what_its_own_option_has(qemu_binary: str, form: str) -> None:
    with QemuProcess(paused=True) as guest:
        result = call("inspect", "--json", "--qmp", form.format(guest.monitor_path))
        done(result)
        assert json.loads(result.out)["pid"] == guest.pid


def test_a_path_with_a_colon_is_a_path(qemu_binary: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("localhost:4444", "tcp:1", "a,server=on"):
        with QemuProcess(paused=True) as guest:
            (tmp_path / name).symlink_to(guest.monitor_path)
            done(call("inspect", "--qmp", name))


@pytest.mark.parametrize("verb", ["save", "plan", "inspect"])
@pytest.mark.parametrize("address", ["tcp:localhost:4444", "localhost:4444"])
def test_a_monitor_over_tcp_is_refused_before_anything_else(tmp_path: Path, verb: str, address: str) -> None:
    files = () if verb == "inspect" else (tmp_path / "saved",)
    with untouched(tmp_path):
        result = call(verb, *files, "--qmp", address)
    hint = "give QEMU a monitor more, with -qmp unix:PATH,server=on,wait=off"
    refused(result, 2, "is not a unix socket, which alone can hand QEMU the descriptor", hint=hint)


@ROOT
@pytest.mark.parametrize("proc", [(), ("--mount-proc",)], ids=["our /proc", "its own"])
def test_a_qemu_in_a_pid_namespace_below_ours_is_saved(
    ticker: list[str], tmp_path: Path, proc: tuple[str, ...]
) -> None:
    inner = [*(with_own_mounts() if proc else ["unshare"]), "--pid", "--fork", "--kill-child", *proc]
    with QemuProcess(*ticker, wrapper=inner) as guest:
        guest.wait_serial("C")
        with parallel_fixedram.open_qemu(os.fspath(guest.monitor_path)) as machine:
            assert "qemu" in os.readlink(f"/proc/{machine.pid}/exe")
        done(call("save", tmp_path / "saved", "--qmp", guest.monitor_path))
        assert in_turn(guest.wait_serial("[A-Z]{3}")[0])


@ROOT
@pytest.mark.parametrize(
    ("options", "said", "hint"),
    [
        (("--mount-proc",), "it runs in another pid namespace", "run this where QEMU's process can be seen"),
        ((), "/proc shows a pid namespace other than ours", "mount ours"),
    ],
)
@pytest.mark.parametrize("given", [False, True], ids=["found", "given"])
def test_from_inside_a_pid_namespace_a_qemu_outside_is_said_to_be_there(
    qemu_binary: str, tmp_path: Path, options: tuple[str, ...], said: str, hint: str, given: bool
) -> None:
    with QemuProcess() as guest:
        unshare = with_own_mounts() if options else ["unshare"]
        inside = [*unshare, "--pid", "--fork", *options, sys.executable, "-m", "parallel_fixedram"]
        pid = ["--pid", "1"] if given else []
        result = subprocess.run(
            [*inside, "save", tmp_path / "saved", "--qmp", guest.monitor_path, *pid],
            capture_output=True,
            text=True,
            check=False,
            cwd=Path(__file__).parents[2],
        )
        assert result.returncode == 4
        assert said in result.stderr
        assert hint in result.stderr
        assert guest.status() == "running"
    assert not (tmp_path / "saved").exists()
