import mmap
import os

import numpy as np
import pytest

from parallel_fixedram.host.memory import anonymous
from parallel_fixedram.host.memory.anonymous import huge_memory

HUGE = 1 << 21


@pytest.mark.parametrize("length", [1, 4096, HUGE - 1, HUGE, HUGE + 4096])
def test_memory_begins_at_a_huge_page_is_zero_and_ours(length: int) -> None:
    memory = huge_memory(length)
    assert len(memory) == length
    assert np.frombuffer(memory, np.uint8).ctypes.data % HUGE == 0
    assert not any(memory)
    pid = os.fork()
    if pid == 0:
        memory[0] = 1
        os._exit(0)
    os.waitpid(pid, 0)
    assert memory[0] == 0
    memory[-1:] = b"x"


def test_a_kernel_without_huge_pages_does_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    class Small(mmap.mmap):
        def madvise(self, *_: int) -> None:
            raise OSError(22, "no")

    monkeypatch.setattr(anonymous, "anonymous_memory", lambda length: Small(-1, length))
    assert len(huge_memory(8192)) == 8192
