"""Does it see what is left? One of each kind of thing that is looked for behind a fault is left on purpose."""

from __future__ import annotations

import contextlib
import mmap
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.fault_matrix import Count
from support.leftovers import nothing_left, of_qemu
from support.qemu import QemuProcess, Ram
from support.watched import Watched, require_userfaultfd

from parallel_fixedram.host.memory.userfaultfd import Userfaultfd
from parallel_fixedram.machines.qemu.fdset import FdSet
from parallel_fixedram.machines.qemu.monitor import Monitor

pytestmark = pytest.mark.slow

ROW = "nothing is left"


@contextlib.contextmanager
def found(kind: str, *looks: Any) -> Iterator[None]:
    """What the block leaves is seen, and told by its kind."""
    with (
        pytest.raises(AssertionError, match=f"^left {re.escape(kind)}: "),
        nothing_left(*looks, seconds=0),
    ):
        yield


def test_nothing_is_found_where_nothing_is_left(count: Count) -> None:
    with nothing_left(seconds=0):
        subprocess.run(["true"], check=True)
    count(ROW, 1)


def test_a_descriptor(count: Count) -> None:
    with found("descriptors"):
        fd = os.open("/dev/null", os.O_RDONLY)
    os.close(fd)
    count(ROW, 1)


def test_a_userfaultfd(count: Count) -> None:
    require_userfaultfd()
    with found("descriptors"):
        uffd = Userfaultfd.open_own()
    uffd.close()
    count(ROW, 1)


def test_a_child_that_nobody_has_waited_for(count: Count) -> None:
    with found("children"):
        if (pid := os.fork()) == 0:
            os._exit(0)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    os.waitpid(pid, 0)
    count(ROW, 1)


def test_a_process_whose_parent_has_ended_and_that_has_a_session_of_its_own(count: Count) -> None:
    tell, told = os.pipe()
    with found("processes"):
        if (pid := os.fork()) == 0:
            os.close(told)
            if os.fork():
                os._exit(0)
            os.setsid()
            os.read(tell, 1)
            os._exit(0)
        os.waitpid(pid, 0)
    with nothing_left(seconds=0):
        pass  # it was there before
    os.close(tell)
    os.close(told)
    count(ROW, 1)


def test_a_file_in_shared_memory(count: Count) -> None:
    needs_mounts()
    with found("shared memory"):
        left = Path("/dev/shm/left")
        left.touch()
    left.unlink()
    count(ROW, 1)


def test_a_mount(count: Count, tmp_path: Path) -> None:
    needs_mounts()
    with found("mounts"):
        subprocess.run(["mount", "-t", "tmpfs", "left", tmp_path], check=True)
    subprocess.run(["umount", tmp_path], check=True)
    count(ROW, 1)


@pytest.mark.parametrize("where", ["temporary files", "run folders"])
def test_a_folder(where: str, count: Count) -> None:
    with found(where):
        left = tempfile.mkdtemp(dir=None if where == "temporary files" else os.environ["XDG_RUNTIME_DIR"])
    os.rmdir(left)
    count(ROW, 1)


def test_what_a_block_takes_away_is_missed(count: Count) -> None:
    fd = os.open("/dev/null", os.O_RDONLY)
    with pytest.raises(AssertionError, match=r"^gone descriptors: "), nothing_left(seconds=0):
        os.close(fd)
    count(ROW, 1)


@pytest.mark.qemu
def test_what_qemu_was_handed_and_a_session_with_it(count: Count) -> None:
    with QemuProcess(ram=Ram(8 << 20), paused=True) as guest:
        look = lambda: of_qemu(guest)  # noqa: E731
        with Monitor(str(guest.monitor_path)) as monitor:
            with found("descriptors of QEMU", look):
                given = FdSet(monitor)
                with open("/dev/null") as file:
                    given.add(file.fileno())
            sets = of_qemu(guest)["descriptor sets of QEMU"]
            assert len(sets) == 1
            given.close()
            assert of_qemu(guest)["descriptor sets of QEMU"] == set()
        with nothing_left(look), Monitor(str(guest.monitor_path)):
            pass
        with found("descriptors of QEMU", look):
            monitor = Monitor(str(guest.monitor_path))
        monitor.close()
    count(ROW, 3)


def test_memory_whose_writes_somebody_waits_for(count: Count) -> None:
    with Watched(lambda: mmap.mmap(-1, mmap.PAGESIZE)) as watched:
        guest: Any = SimpleNamespace(pid=watched.pid, qmp=lambda command: [])
        with found("watched mappings of QEMU", lambda: of_qemu(guest)):
            watched.register()
    count(ROW, 1)


def needs_mounts() -> None:
    if os.geteuid():
        pytest.skip("only root can have mounts, and a /dev/shm, of its own")
