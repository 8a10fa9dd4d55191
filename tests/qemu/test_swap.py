"""A QEMU that is held to less memory than it has, with the rest in swap, survives being read and keeps what it had."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from support.qemu import QemuProcess, Ram, boot_from
from support.qemu_reader import read_stored
from support.qemu_saved import in_turn, save
from support.tight_memory import Group, Swap, group, swap

from parallel_fixedram.experiments.boot_sector import boot_image
from parallel_fixedram.host import linux

MIB = 1 << 20
RAM = 80 * MIB
LIMIT = 56 * MIB
"""Less than QEMU and what the guest never looks at take together."""
COLD = range(8 * MIB, 72 * MIB)
"""What the guest never looks at."""

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can have swap and control groups")


@pytest.fixture
def swap_file() -> Iterator[Swap]:
    with swap(256 * MIB) as found:
        yield found


@pytest.fixture
def tight(swap_file: Swap) -> Iterator[Group]:
    with group("parallel-fixedram") as found:
        yield found


def private_swap(guest: QemuProcess) -> int:
    """Its private memory that is in swap, bytes."""
    found = re.search(r"VmSwap:\s+(\d+) kB", Path(f"/proc/{guest.pid}/status").read_text())
    assert found
    return int(found[1]) << 10


def fill(guest: QemuProcess) -> bytes:
    """Fill what the guest does not use, and have that paged out; returns what it was filled with."""
    data = random.Random(1).randbytes(len(COLD))
    block = next(block for block in guest.ramblocks() if block.name == "m")
    with open(f"/proc/{guest.pid}/mem", "r+b", buffering=0) as ram:
        ram.seek(block.hva + COLD.start)
        for start in range(0, len(data), MIB):
            ram.write(data[start : start + MIB])
    pidfd = os.pidfd_open(guest.pid)
    try:
        where = np.array([[block.hva + COLD.start, len(COLD)]], np.uint64)
        linux.process_madvise(pidfd, where, linux.MADV_PAGEOUT)
    except OSError as error:
        pytest.skip(f"nothing can be paged out here: {error}")
    finally:
        os.close(pidfd)
    return data


@pytest.fixture
def image(tmp_path: Path) -> list[str]:
    """Arguments for a guest that works on 2 MiB."""
    path = tmp_path / "image"
    path.write_bytes(boot_image(first=MIB, end=3 * MIB, hz=50))
    return boot_from(path)


@pytest.mark.parametrize("channels", [1, 2])
def test_a_guest_with_private_memory_in_swap_is_saved_and_survives(
    qemu_binary: str, tight: Group, image: list[str], tmp_path: Path, channels: int
) -> None:
    path = tmp_path / "saved"
    with QemuProcess(*image, ram=Ram(RAM), wrapper=tight.entry()) as guest:
        guest.wait_serial("C")
        data = fill(guest)
        tight.limit(LIMIT)
        before, swapped = tight.usage(), private_swap(guest)
        assert swapped > len(COLD) // 2
        save(guest, path, "--channels", channels, "--experimental-multifd")
        assert tight.killed() == 0
        assert tight.usage() < before + 8 * MIB
        assert private_swap(guest) > swapped - 8 * MIB
        assert in_turn(guest.wait_serial("[A-Z]{3}")[0])
    assert read_stored(path).blocks["m"].contents()[COLD.start : COLD.stop] == data


def test_shared_memory_in_swap_goes_back_as_far_as_the_kernel_takes_it(
    qemu_binary: str, swap_file: Swap, tight: Group, image: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "saved"
    with QemuProcess(*image, ram=Ram(RAM, "memfd"), wrapper=tight.entry()) as guest:
        guest.wait_serial("C")
        data = fill(guest)
        tight.limit(LIMIT)
        tight.limit(1024 * MIB)  # so that nothing but us has a reason to page anything out
        swapped = swap_file.used()
        assert swapped > len(COLD) // 4
        save(guest, path, "--channels", 2, "--experimental-multifd")
        assert tight.killed() == 0
        assert swap_file.used() > swapped // 8  # the kernel leaves pages that somebody else is about to use
        assert in_turn(guest.wait_serial("[A-Z]{3}")[0])
    assert read_stored(path).blocks["m"].contents()[COLD.start : COLD.stop] == data
