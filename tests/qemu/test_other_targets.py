"""Guests of other targets that run: saved meanwhile, loaded by a stock QEMU of their target, restored and cloned."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import NamedTuple

import pytest
from support import arm_guest
from support.cli import call, done
from support.examples import unless_thorough
from support.qemu import QemuProcess, Ram, boot_from, require_qemu
from support.qemu_boot import BootFolder
from support.qemu_saved import WAYS_TO_LOAD, contents, differences, in_turn, save

from parallel_fixedram.experiments.boot_sector import boot_image


class Kind(NamedTuple):
    machine: str
    arguments: Callable[[str, Path], list[str]]
    main: str
    """Name of the block that is QEMU's default RAM."""
    checks: Callable[[bytes], None]
    """Of main memory."""


def i386(_target: str, folder: Path) -> list[str]:
    (folder / "image").write_bytes(boot_image(first=2 << 20, end=18 << 20))
    return boot_from(folder / "image")


KINDS = {
    "i386": Kind("pc", i386, "pc.ram", lambda _: None),
    "aarch64": Kind("virt", arm_guest.arguments, "mach-virt.ram", arm_guest.check_pages),
    "arm": Kind("virt", arm_guest.arguments, "mach-virt.ram", arm_guest.check_pages),
}


@pytest.mark.parametrize(
    ("target", "backend"),
    unless_thorough(
        [("i386", "memfd"), ("aarch64", "default"), ("arm", "memfd")], product(KINDS, ["default", "memfd"])
    ),
)
def test_a_guest_goes_on_in_a_stock_qemu_restored_and_cloned(
    tmp_path: Path, boot: BootFolder, target: str, backend: str
) -> None:
    kind, running, still = KINDS[target], tmp_path / "running", tmp_path / "still"
    args, ram = kind.arguments(target, tmp_path), Ram(backend=backend)  # type: ignore[arg-type]
    main = kind.main if backend == "default" else "m"
    with QemuProcess(*args, ram=ram, machine=kind.machine, target=target) as source:
        source.wait_serial("C")
        save(source, running)
        seen = source.wait_serial("[A-Z]{3}")[0]
        source.stop()
        seen += source.take_serial()
        save(source, still, "--channels", 2, "--experimental-multifd")
        before = contents(source)
        kind.checks(before[main])
    done(call("verify", running))
    with QemuProcess(*args, ram=ram, machine=kind.machine, target=target, incoming=True) as stock:
        stock.load(f"file:{running}")
        assert in_turn(stock.wait_serial("[A-Z]{3}")[0])
        stock.stop()
        kind.checks(stock.read_block(main))  # pages of one moment
    with QemuProcess(*args, ram=ram, machine=kind.machine, target=target, incoming=True) as stock:
        stock.load(f"file:{still}", *WAYS_TO_LOAD["multifd 2"])
        assert stock.status() == "paused"
        assert differences(before, contents(stock)) == {}
        stock.cont()
        assert in_turn(seen + stock.wait_serial("[A-Z]{3}")[0])
    clones = 2 if backend == "default" else 0
    verb = ("clone", still, "--count", clones) if clones else ("restore", still, "--shared")
    line = boot.line(*args, ram=ram, machine=kind.machine, program=require_qemu(target), clones=clones)
    for guest in boot.start(*verb, line=line).guests:
        assert guest.status() == "running"
        assert in_turn(seen + guest.wait_serial("[A-Z]{3}")[0])
