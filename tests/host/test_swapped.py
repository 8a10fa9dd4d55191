"""Memory in swap: what cannot be given back is not read where it would have the process killed."""

from __future__ import annotations

import errno
import mmap
import os
from pathlib import Path

import numpy as np
import pytest
from support.refusing import Refuse

from parallel_fixedram.core.errors import HostError, MachineError
from parallel_fixedram.core.units import GIB, MIB
from parallel_fixedram.host import linux
from parallel_fixedram.host.memory import memory_limit, swapped
from parallel_fixedram.host.memory.memory_limit import memory_room, swapped_bytes
from parallel_fixedram.host.memory.swapped import SwappedPages, check_room

US = os.getpid()


def refuse(*_: object) -> None:
    raise OSError(errno.EPERM, os.strerror(errno.EPERM))


class TestRoom:
    @pytest.fixture
    def groups(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """Folders of two control groups, one in the other."""
        inner = tmp_path / "a" / "b"
        inner.mkdir(parents=True)
        kinds = memory_limit._FILES["cgroup2"]
        monkeypatch.setattr(memory_limit, "_groups", lambda _pid: [(str(inner), kinds), (str(tmp_path / "a"), kinds)])
        for folder, used in ((inner, 10), (tmp_path / "a", 90)):
            (folder / "memory.current").write_text(f"{used}\n")
            (folder / "memory.max").write_text("max\n")
        return tmp_path

    def test_without_a_limit_there_is_no_end(self, groups: Path) -> None:
        assert memory_room(US) is None

    def test_the_tightest_of_all_counts(self, groups: Path) -> None:
        (groups / "a/b/memory.max").write_text("50\n")
        assert memory_room(US) == 40
        (groups / "a/memory.high").write_text("100\n")
        assert memory_room(US) == 10
        (groups / "a/memory.max").write_text("80\n")
        assert memory_room(US) == 0

    def test_the_old_way_to_say_that_there_is_no_limit(self, groups: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        old = groups / "old"
        old.mkdir()
        monkeypatch.setattr(memory_limit, "_groups", lambda _pid: [(str(old), memory_limit._FILES["cgroup"])])
        (old / "memory.usage_in_bytes").write_text("4096\n")
        (old / "memory.limit_in_bytes").write_text("9223372036854771712\n")
        assert memory_room(US) is None
        (old / "memory.limit_in_bytes").write_text("8192\n")
        assert memory_room(US) == 4096

    def test_a_process_that_is_gone_has_nothing(self) -> None:
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)
        assert swapped_bytes(pid) == 0
        assert memory_room(pid) is None


class TestRefused:
    @pytest.fixture(autouse=True)
    def swapped_out(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(swapped, "swapped_bytes", lambda _pid: 512 * MIB)

    def test_more_than_there_is_room_for_without_the_right_to_give_it_back(
        self, monkeypatch: pytest.MonkeyPatch, refuse: Refuse
    ) -> None:
        monkeypatch.setattr(swapped, "memory_room", lambda _pid: 100 * MIB)
        refuse(linux, "process_madvise", errno.EPERM)
        with pytest.raises(HostError) as caught:
            check_room(US)
        assert caught.value.message == (
            f"process {US} has 512 MiB in swap, and its control group has room for 100 MiB: operation not permitted"
        )
        assert "CAP_SYS_NICE" in caught.value.hint

    @pytest.mark.parametrize("room", [None, GIB])
    def test_what_there_is_room_for_takes_no_right(
        self, monkeypatch: pytest.MonkeyPatch, refuse: Refuse, room: int | None
    ) -> None:
        monkeypatch.setattr(swapped, "memory_room", lambda _pid: room)
        refuse(linux, "process_madvise", errno.EPERM)
        check_room(US)

    def test_a_process_that_has_ended_is_said_to_be_gone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(swapped, "memory_room", lambda _pid: 0)
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)
        with pytest.raises(MachineError, match="has ended"):
            check_room(pid)


def test_nothing_of_what_is_in_memory_is_in_swap_either_way_of_asking() -> None:
    memory = mmap.mmap(-1, MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    pages = np.frombuffer(memory, np.uint8)
    memory.write(b"\1" * MIB)
    found = SwappedPages(US)
    try:
        for ask in (found.within, found._listed):
            assert ask(pages.ctypes.data, MIB).shape == (0, 2)
    finally:
        found.close()
        found.close()


def test_without_the_right_to_give_advice_pages_are_read_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []

    def counted(*arguments: object) -> None:
        calls.append(arguments)
        refuse()

    monkeypatch.setattr(linux, "process_madvise", counted)
    found = SwappedPages(US)
    ranges = np.array([[mmap.PAGESIZE, mmap.PAGESIZE]], np.uint64)
    found.bring_in(ranges)
    found.give_back(ranges)
    found.close()
    assert len(calls) == 1
