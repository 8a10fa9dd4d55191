"""Memory in swap: what cannot be given back is not read where it would have the process killed."""

from __future__ import annotations

import errno
import mmap
import os

import numpy as np
import pytest
from support.refusing import Refuse

from parallel_fixedram.core.errors import HostError, MachineError
from parallel_fixedram.core.units import GIB, MIB
from parallel_fixedram.host import linux
from parallel_fixedram.host.memory.swapped import SwappedPages, check_room

US = os.getpid()


def refuse(*_: object) -> None:
    raise OSError(errno.EPERM, os.strerror(errno.EPERM))


class TestRefused:
    def test_more_than_there_is_room_for_without_the_right_to_give_it_back(self, refuse: Refuse) -> None:
        refuse(linux, "process_madvise", errno.EPERM)
        with pytest.raises(HostError) as caught:
            check_room(US, 512 * MIB, 100 * MIB)
        assert caught.value.message == (
            f"process {US} has 512 MiB in swap, and its control group has room for 100 MiB: operation not permitted"
        )
        assert "CAP_SYS_NICE" in caught.value.hint

    @pytest.mark.parametrize("room", [None, GIB])
    def test_what_there_is_room_for_takes_no_right(self, refuse: Refuse, room: int | None) -> None:
        refuse(linux, "process_madvise", errno.EPERM)
        check_room(US, 512 * MIB, room)

    def test_a_process_that_has_ended_is_said_to_be_gone(self) -> None:
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)
        with pytest.raises(MachineError, match="has ended"):
            check_room(pid, 512 * MIB, 0)


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
