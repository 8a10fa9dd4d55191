"""A file by our writer, with every RAMBlock, the device sections and a trailer, loaded by a stock QEMU."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest
from support.command import report
from support.examples import unless_thorough
from support.qemu_compose import compose
from support.qemu_files import SavedGuest
from support.qemu_reader import read_stored

MIB = 1 << 20
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
WAYS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "plain": (("mapped-ram",), {}),
    "multifd": (("mapped-ram", "multifd"), {"multifd-channels": 2}),
    "direct-io": (("mapped-ram", "multifd"), {"multifd-channels": 2, "direct-io": True}),
}


@pytest.fixture(scope="module")
def composed(
    qemu_files: dict[str, SavedGuest], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, SavedGuest]]:
    """Files by our writer of the guests of QEMU's own files, by name."""
    folder = tmp_path_factory.mktemp("composed")
    yield {name: compose(qemu_files[name], folder / name) for name in ("plain", "live", "numa")}
    shutil.rmtree(folder)


def load(saved: SavedGuest, way: str, blocks: tuple[str, ...]) -> str:
    """Load a file into a fresh QEMU, compare RAM with the raw copies, and let the guest go on.

    Returns:
        The first letters that it prints.
    """
    capabilities, parameters = WAYS[way]
    with saved.destination() as guest:
        guest.load(saved.uri, capabilities, parameters)
        assert guest.status() == saved.loaded
        if saved.loaded == "paused":
            for block in blocks:
                assert guest.read_block(block) == saved.blocks[block].read_bytes(), block
            guest.cont()
        assert guest.complaints() == []
        return str(guest.wait_serial("[A-Z]{3}")[0])


@pytest.mark.parametrize(
    ("name", "way"),
    unless_thorough(
        [("plain", "plain"), ("numa", "direct-io"), ("live", "multifd")], product(["plain", "numa", "live"], WAYS)
    ),
)
def test_qemu_loads_our_file_and_the_guest_goes_on_where_it_stood(
    composed: dict[str, SavedGuest], qemu_files: dict[str, SavedGuest], name: str, way: str
) -> None:
    letters = load(composed[name], way, tuple(composed[name].blocks))
    assert letters in LETTERS + LETTERS
    assert letters == load(qemu_files[name], "plain", ())


@pytest.mark.parametrize("name", ["plain", "live", "numa"])
def test_our_file_is_verified_and_holds_what_qemus_own_holds(
    composed: dict[str, SavedGuest], qemu_files: dict[str, SavedGuest], name: str
) -> None:
    ours, qemus = composed[name], qemu_files[name]
    checked = report("verify", ours.uri)
    assert (checked["ok"], checked["digests"], checked["stale_pages"]) == (True, True, 0)
    assert report("diff", ours.uri, qemus.uri)["equal"]
    mine, theirs = read_stored(ours.path), read_stored(qemus.path)
    assert (mine.machine, mine.capabilities) == (theirs.machine, theirs.capabilities)
    for block, raw in ours.blocks.items():
        assert mine.blocks[block].contents() == raw.read_bytes()
