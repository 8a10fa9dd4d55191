"""What the control groups of a process leave it, of either version, inside a container and outside."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from parallel_fixedram.core.errors import HostError
from parallel_fixedram.host.memory.memory_limit import memory_room, memory_until_killed, swapped_bytes
from parallel_fixedram.machines.builtin.process import GuestProcess
from parallel_fixedram.machines.builtin.spec import GuestSpec

NO_LIMIT = {"cgroup": "9223372036854771712", "cgroup2": "max"}
NAMES = {
    "cgroup": ("memory.limit_in_bytes", "memory.usage_in_bytes"),
    "cgroup2": ("memory.max", "memory.current"),
}
STAT = {
    "cgroup": "inactive_file 1\nactive_file 1\ntotal_inactive_file 20\ntotal_active_file 10\n",
    "cgroup2": "anon 5\ninactive_file 20\nactive_file 10\n",
}


class System:
    """Control groups of one version, as /proc and a mount of them show them.

    Args:
        folder: for all of it.
        kind: ``cgroup`` or ``cgroup2``.
        inside: the group that the process is in.
        root: the group that is mounted, which a container sees as the root.
    """

    def __init__(self, folder: Path, kind: str, inside: str, root: str = "/") -> None:
        self.kind, self.point = kind, folder / "mount"
        self.proc = folder / "proc"
        for name in ("self", "1"):
            (self.proc / name).mkdir(parents=True)
        options = "rw,memory" if kind == "cgroup" else "rw"
        (self.proc / "self" / "mountinfo").write_text(
            "23 1 0:22 / /proc rw - proc proc rw\n"
            f"31 23 0:28 {root} {self.point} rw,relatime shared:1 - {kind} {kind} {options}\n"
        )
        (self.proc / "1" / "cgroup").write_text(
            f"5:cpu:/other\n4:memory:{inside}\n" if kind == "cgroup" else f"0::{inside}\n"
        )

    def memory_room(self) -> int | None:
        return memory_room(1, proc=str(self.proc))

    def memory_until_killed(self) -> int | None:
        return memory_until_killed(1, proc=str(self.proc))

    def group(self, path: str, limit: int | None, used: int) -> None:
        """Make a group with a limit."""
        folder = self.point / path
        folder.mkdir(parents=True, exist_ok=True)
        limits, usage = NAMES[self.kind]
        (folder / limits).write_text(f"{NO_LIMIT[self.kind] if limit is None else limit}\n")
        (folder / usage).write_text(f"{used}\n")
        (folder / "memory.stat").write_text(STAT[self.kind])


@pytest.fixture(params=["cgroup", "cgroup2"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_what_is_cached_of_files_makes_room(tmp_path: Path, kind: str) -> None:
    system = System(tmp_path, kind, "/a/b")
    assert system.memory_until_killed() is None
    system.group("a/b", None, 10)
    system.group("a", 1000, 900)
    assert system.memory_until_killed() == 100 + 30
    assert system.memory_room() == 100
    system.group("a/b", 500, 490)
    assert system.memory_until_killed() == 10 + 30


@pytest.mark.parametrize(
    ("inside", "root"), [("/", "/"), ("/docker/x", "/docker/x"), ("/docker/x/y", "/docker/x"), ("/a/b", "/")]
)
def test_the_limit_of_a_container_is_that_of_the_root_it_sees(
    tmp_path: Path, kind: str, inside: str, root: str
) -> None:
    system = System(tmp_path, kind, inside, root)
    system.group("", 1000, 900)
    assert system.memory_until_killed() == 130


@pytest.mark.parametrize("inside", ["/docker/other", "/../outside", "/docker/xy"])
def test_groups_that_are_not_seen_here_limit_nothing(tmp_path: Path, kind: str, inside: str) -> None:
    system = System(tmp_path, kind, inside, "/docker/x")
    system.group("", 1000, 900)
    assert system.memory_until_killed() is None


def test_only_what_is_killed_for_counts(tmp_path: Path) -> None:
    system = System(tmp_path, "cgroup2", "/a")
    system.group("a", 1000, 900)
    (system.point / "a" / "memory.high").write_text("901\n")
    assert (system.memory_room(), system.memory_until_killed()) == (1, 130)


def test_the_tightest_of_all_counts(tmp_path: Path) -> None:
    system = System(tmp_path, "cgroup2", "/a/b")
    system.group("a/b", 50, 10)
    system.group("a", None, 90)
    assert system.memory_room() == 40
    (system.point / "a" / "memory.high").write_text("100\n")
    assert system.memory_room() == 10
    (system.point / "a" / "memory.max").write_text("80\n")
    assert system.memory_room() == 0


def test_without_a_limit_there_is_no_end(tmp_path: Path, kind: str) -> None:
    system = System(tmp_path, kind, "/a")
    system.group("a", None, 4096)
    assert system.memory_room() is system.memory_until_killed() is None
    system.group("a", 8192, 4096)
    assert system.memory_room() == 4096


def test_a_process_that_is_gone_has_nothing() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    assert swapped_bytes(pid) == 0
    assert memory_room(pid) is None


def test_a_guest_that_its_control_group_would_be_killed_for_is_refused(leave_memory: Callable[[int], None]) -> None:
    leave_memory(1 << 20)
    with pytest.raises(HostError, match=r"writes 2\.0 MiB of RAM, but only 1\.0 MiB of memory is available to this"):
        GuestProcess(GuestSpec.parse("dense,size=2MiB"))
    GuestProcess(GuestSpec.parse("zero,size=2MiB")).close()  # it writes nothing
