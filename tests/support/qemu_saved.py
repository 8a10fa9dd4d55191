"""Saving a running QEMU with the command, and what a stock QEMU makes of the file."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from support.cli import Result, call
from support.command import report
from support.qemu import QemuProcess
from support.qemu_linux import LinuxGuest

WAYS_TO_LOAD: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "plain": (("mapped-ram",), {}),
    "multifd 2": (("mapped-ram", "multifd"), {"multifd-channels": 2}),
    "multifd 8": (("mapped-ram", "multifd"), {"multifd-channels": 8}),
    "direct-io": (("mapped-ram", "multifd"), {"multifd-channels": 2, "direct-io": True}),
}
"""Capabilities and parameters."""

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
PAGE = 4096
KNOWN_MIB = 2
"""Size of the known file; the guest computes its sum all the time."""
TICK = r"tick (\d+) (\w+)\r"


def save(guest: QemuProcess, path: Path, *options: object, by: Callable[..., Result] = call) -> dict[str, Any]:
    """Save a guest whether it runs or not, without its disks; afterwards it does what it did. Returns the report.

    The guest may be stopped or running, and what the report says of seconds and pages has to fit together.
    """
    before = guest.status()
    saved = report("save", path, "--qmp", guest.monitor_path, "--disks", "none", *options, by=by)
    assert guest.status() == before
    seconds = saved["seconds"]
    assert all(value >= 0 for value in seconds.values()), seconds
    assert seconds["pause"] <= seconds["total"]
    assert (seconds["pause"] > 0) == (before == "running")
    if before == "running":
        assert seconds["pause"] >= seconds["stop"] + seconds["ram"] + seconds["cont"]
        assert seconds["pause"] >= seconds["stop"] + seconds["device_state"]
    blocks = {block["idstr"]: block for block in saved["blocks"]}
    assert {name: block["used_length"] for name, block in blocks.items()} == {
        block.name: block.used for block in guest.ramblocks()
    }
    assert all(block["data_pages"] + block["zero_pages"] == block["pages"] for block in blocks.values())
    assert saved["bytes"]["file"] == path.stat().st_size
    assert not [name for name in path.parent.iterdir() if name.suffix == ".part"]
    return saved


def migrate(guest: QemuProcess, path: Path, capabilities: Iterable[str] = ("mapped-ram",)) -> None:
    """Have QEMU save the guest itself, and return when it is no longer busy: that it is done it says a bit early."""
    guest.migrate(f"file:{path}", capabilities)
    while guest.status() == "finish-migrate":
        pass


def contents(guest: QemuProcess) -> dict[str, bytes]:
    """Every RAMBlock of a guest that stands still."""
    return {block.name: guest.read_block(block.name) for block in guest.ramblocks()}


def differences(one: dict[str, bytes], other: dict[str, bytes]) -> dict[str, list[int]]:
    """Numbers of the pages that differ, by block; both have the same blocks."""
    assert list(one) == list(other)
    found = {}
    for name, mine in one.items():
        assert len(mine) == len(other[name]), name
        if mine != other[name]:
            starts = range(0, len(mine), 4096)
            found[name] = [at // 4096 for at in starts if mine[at : at + 4096] != other[name][at : at + 4096]]
    return found


def assert_one_instant(ram: bytes | bytearray, first: int = 1 << 20, end: int = 40 << 20) -> None:
    """Hold the RAM of the boot-sector guest against its promise: only pages before some page are one round ahead."""
    numbers = np.arange(first // PAGE, end // PAGE)
    mine = np.frombuffer(ram, np.uint8).reshape(-1, PAGE)[first // PAGE : end // PAGE]
    rounds = (mine[:, 0].astype(np.int64) - numbers // 2) % 8
    ahead = (rounds - rounds[-1]) % 8
    assert set(ahead) <= {0, 1}
    assert (np.diff(ahead) > 0).sum() == 0


def assert_as_written(ram: bytes | bytearray, first: int, end: int) -> None:
    """Hold the RAM of the boot-sector guest against all that it writes: it is there, and nothing else is.

    Each round counts on in every page, so that a page which has missed one stays behind for good.
    """
    assert_one_instant(ram, first, end)
    wanted = np.zeros(((end - first) // PAGE, PAGE), np.uint8)
    found = np.frombuffer(ram, np.uint8)[first:end].reshape(wanted.shape)
    wanted[:, 0] = found[:, 0]
    odd = slice((first // PAGE + 1) % 2, None, 2)
    wanted.view("<u4")[odd, 1] = np.arange(first, end, PAGE)[odd]
    assert np.flatnonzero((found != wanted).any(axis=1)).tolist() == []


def wait_tick(guest: QemuProcess) -> int:
    """Wait for a tick of the Linux guest with the right sum; returns its number."""
    tick = guest.wait_serial(TICK)
    assert tick[2] == LinuxGuest.md5(KNOWN_MIB)
    return int(tick[1])


def in_turn(letters: Iterable[str]) -> bool:
    """Whether the boot sector's letters follow one another."""
    numbers = [LETTERS.index(letter) for letter in "".join(letters)]
    return all((before + 1 - after) % len(LETTERS) == 0 for before, after in pairwise(numbers))
