"""Altered files, and what a stock QEMU makes of each: what we accept it loads, to the same bytes.

QEMU checks little of a mapped-ram file: there are some that end it, and some that it loads as another guest. We refuse
all of them.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.examples import seed, thorough
from support.fault_matrix import Count
from support.mutants import Number, Template, mutant
from support.qemu import QemuDied, QemuError, QemuProcess, Ram
from support.qemu_tools import all_qemus, require_qemu, require_tool
from support.second_reader import contents

from parallel_fixedram.boot.incoming import check_machine
from parallel_fixedram.core.errors import FixedRamError
from parallel_fixedram.format.mapped_ram import SavedBlock
from parallel_fixedram.image.image import Image
from parallel_fixedram.image.restore import check_head
from parallel_fixedram.machines.qemu.monitor import Monitor

pytestmark = [pytest.mark.slow, pytest.mark.qemu]

NUMBER = 3000 if thorough() else 150
"""Files of each kind: with one bit of a record or of a head that is another one, and altered in any way."""
RAM = Ram(8 << 20, "memfd")
PAGE = 4096
MOST_MEMORY = 8 << 30
"""Bytes of address space that a QEMU gets: a length that it believes must not cost more."""


@dataclass(frozen=True)
class Saved:
    """QEMU's own file of a guest that has some RAM."""

    machine: str
    """Which the oldest QEMU has, and so all of them."""
    template: Template
    heads: list[range]
    """Where records, and what is before and behind them, stand."""
    outside: int
    """Where RAM ends, and what QEMU alone can judge begins."""
    ram: dict[str, bytes]
    """What the blocks hold, by name."""


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    path = tmp_path_factory.mktemp("saved") / "file"
    require_qemu()
    (version, program), *_ = all_qemus().items()
    machine = "pc-q35-{}.{}".format(*version)
    with QemuProcess(ram=RAM, machine=machine, program=program, paused=True) as guest:
        with guest.ram_path.open("r+b") as ram:
            for page in range(0, RAM.size // PAGE, 3):
                ram.seek(page * PAGE)
                ram.write(page.to_bytes(4, "big") * (PAGE // 4))
        guest.migrate(f"file:{path}")
    with Image(str(path)) as image:
        blocks = image.blocks
    numbers = [Number(9, 4), Number(blocks[0].record_offset - 8, 8)]
    for each in blocks:
        at = each.record_offset
        numbers += Number(at, 1), Number(at + 1 + len(each.block.idstr), 8), Number(each.header_offset, 4)
        numbers += (Number(each.header_offset + more, 8) for more in (4, 12, 20))
    heads = [range(blocks[0].record_offset)]
    heads += [range(each.record_offset, each.header.bitmap_offset) for each in blocks]
    data = path.read_bytes()
    ram = {each.block.idstr: contents(data, each) for each in blocks}
    return Saved(machine, Template(data, numbers), heads, blocks[-1].next_offset, ram)


def one_bit(saved: Saved, draw: random.Random) -> bytes:
    data, at = bytearray(saved.template.data), draw.choice(draw.choice(saved.heads))
    data[at] ^= 1 << draw.randrange(8)
    return bytes(data)


def anything(saved: Saved, draw: random.Random) -> bytes:
    return mutant(saved.template, draw.randbytes(1 + draw.randrange(12)), 2)


@pytest.mark.parametrize("altered", [one_bit, anything])
def test_what_we_accept_a_stock_qemu_loads_to_the_same_bytes(
    saved: Saved, altered: Callable[[Saved, random.Random], bytes], tmp_path: Path, count: Count
) -> None:
    require_tool("prlimit")
    qemus, outcomes, wrong = list(all_qemus().values()), Counter[str](), list[str]()
    draw = random.Random(f"{seed()} {altered.__name__}")
    for number in range(NUMBER):
        data = altered(saved, draw)
        program = qemus[-1] if number % 6 == 0 else qemus[0]
        path = tmp_path / "file"
        path.write_bytes(data)
        ours, theirs = outcome(program, RAM, path, saved, data)
        outcomes[f"{ours}, {theirs}"] += 1
        if not (ours == "refused" or theirs == "loaded" or (theirs == "refused" and changed_outside(data, saved))):
            wrong.append(f"{number}: {ours} by us, {theirs} by {program}")
    assert wrong == []
    for each, times in outcomes.items():
        count(f"{each.replace(', ', ' by us, ')} by QEMU", times)


@pytest.mark.parametrize("size", [4 << 20, 16 << 20])
def test_a_guest_of_another_size_is_not_given_a_file(saved: Saved, size: int, tmp_path: Path, count: Count) -> None:
    """QEMU itself loads 8 MiB into 16 without a word."""
    require_tool("prlimit")
    path = tmp_path / "file"
    path.write_bytes(saved.template.data)
    for program in all_qemus().values():
        ours, theirs = outcome(program, Ram(size, RAM.backend), path, saved, saved.template.data)
        assert ours == "refused", f"{theirs} by {program}"
        count(f"a guest of another size: {theirs} by QEMU", 1)


def changed_outside(data: bytes, saved: Saved) -> bool:
    """Whether it is device state that is another one: what of it QEMU takes, nobody else knows."""
    return data[saved.outside :] != saved.template.data[saved.outside :]


def outcome(program: str, ram: Ram, path: Path, saved: Saved, data: bytes) -> tuple[str, str]:
    """What we make of a file, and what a QEMU makes of it that waits for a guest with that RAM."""
    wrapper = ["prlimit", f"--as={MOST_MEMORY}"]
    with QemuProcess(ram=ram, machine=saved.machine, program=program, incoming=True, wrapper=wrapper) as qemu:
        blocks = accepted(path, qemu)
        ours = "accepted" if blocks else "refused"
        before = {each.name: qemu.read_block(each.name) for each in qemu.ramblocks()}
        try:
            qemu.load(f"file:{path}")
        except QemuDied:
            return ours, "refused" if qemu.wait_exit() == 1 else "fatal"
        except QemuError:
            return ours, "refused"
        found = {name: qemu.read_block(name) for name in before}
        wanted = {each.block.idstr: contents(data, each) for each in blocks} or saved.ram
        same = all(holds(found[name], wanted[name], before[name]) for name in wanted)
        return ours, "loaded" if same else "loaded as another guest"


def holds(found: bytes, wanted: bytes, before: bytes) -> bool:
    """Whether a block is what a file says; a page that it has not is zero, or what the QEMU had put there."""
    if len(found) != len(wanted):
        return False
    for at in range(0, len(wanted), PAGE):
        page = wanted[at : at + PAGE]
        if found[at : at + PAGE] != page and (any(page) or found[at : at + PAGE] != before[at : at + PAGE]):
            return False
    return True


def accepted(path: Path, qemu: QemuProcess) -> list[SavedBlock]:
    """The blocks of a file that a guest could be restored from; none if it is refused."""
    try:
        with Image(str(path)) as image, Monitor(str(qemu.monitor_path)) as monitor:
            image.check_complete()
            image.refuse_absent()
            check_head(image)
            for saved in image.blocks:
                image.bitmap(saved.block.idstr)
            check_machine(monitor, image.file.configuration.machine, [each.block for each in image.blocks])
            return image.blocks
    except FixedRamError:
        return []
