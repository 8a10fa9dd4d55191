"""Why a process is not seen: in namespaces of our own, each in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.qemu_tools import require_tool, with_own_mounts

from parallel_fixedram.host.processes.unseen import why_unseen

ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make these namespaces")
ASK = "from parallel_fixedram.host.processes.unseen import why_unseen; print(why_unseen({pid}))"


IDENTIFY = """
from parallel_fixedram.core.errors import HostError
from parallel_fixedram.host.processes.identity import identity_of
try:
    print(identity_of({pid}))
except HostError as error:
    print(error.message)
"""


def asked_in(*wrapper: str, pid: int, ask: str = ASK) -> str:
    """What a process says that is started so."""
    done = subprocess.run(
        [*wrapper, sys.executable, "-c", ask.format(pid=pid)],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    if done.returncode and "Operation not permitted" in done.stderr:
        pytest.skip(f"no such namespace can be made here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_of_a_process_that_is_seen_nothing_is_said() -> None:
    assert why_unseen(os.getpid()) is None


def test_a_process_without_a_number_here_runs_in_another_pid_namespace() -> None:
    reason = why_unseen(0)
    assert reason is not None
    assert reason[0] == "it runs in another pid namespace, such as outside of this container"


@ROOT
def test_a_proc_that_is_not_ours_is_noticed() -> None:
    unshare = require_tool("unshare")
    assert "/proc shows a pid namespace other than ours" in asked_in(unshare, "--pid", "--fork", pid=1)


@ROOT
def test_a_missing_proc_is_noticed() -> None:
    hide = ["sh", "-c", 'mount -t tmpfs none /proc && exec "$@"', "sh"]
    assert "no /proc is mounted here" in asked_in(*with_own_mounts(), *hide, pid=1)
    assert "no /proc is mounted here" in asked_in(*with_own_mounts(), *hide, pid=1, ask=IDENTIFY)


def test_root_of_a_user_namespace_is_told_so() -> None:
    said = asked_in(require_tool("unshare"), "--user", "--map-root-user", pid=os.getpid())
    assert "root only in a user namespace" in said


@ROOT
def test_a_proc_that_hides_others_is_noticed() -> None:
    hide = ["sh", "-c", 'mount -t proc -o hidepid=invisible proc /proc && exec "$@"', "sh"]
    become = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    folder = Path(sys.executable).resolve()
    if not os.access(folder, os.X_OK) or any(not each.stat().st_mode & 0o001 for each in folder.parents):
        pytest.skip("this interpreter is out of the reach of other users")
    said = asked_in(*with_own_mounts(), *hide, require_tool(become[0]), *become[1:], pid=os.getpid())
    assert "hidepid" in said
