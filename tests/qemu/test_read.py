"""Our reader on QEMU's own files, against a second reader, the VM description and raw copies of the RAM."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import pytest
from support.cli import refused, run
from support.command import report
from support.qemu_files import UUID, SavedGuest
from support.qemu_reader import PAGE, StoredGuest, read_stored, vm_description

from parallel_fixedram import open_image

VARIANTS = [
    *("plain", "multifd", "direct-io", "offset-2m", "offset-123", "uuid", "no-vmdesc", "all-pages"),
    *("live", "numa"),
]


def stored(files: dict[str, SavedGuest], name: str) -> StoredGuest:
    """The file by the second reader; without a VM description, by that of the same guest's other file."""
    described = files["plain" if name == "no-vmdesc" else name].path
    return read_stored(files[name].path, files[name].offset, vm_description(described))


@pytest.mark.parametrize("name", VARIANTS)
def test_inspect_says_what_a_second_reader_finds(qemu_files: dict[str, SavedGuest], name: str) -> None:
    saved, expected = qemu_files[name], stored(qemu_files, name)
    said = report("inspect", saved.uri)
    assert said["machine"] == expected.machine
    assert said["capabilities"] == expected.capabilities == ["mapped-ram"]
    assert said["uuid"] == (str(uuid.UUID(UUID)) if name == "uuid" else None)
    assert (said["offset"], said["page_size"], said["ram_ended"], said["digests"]) == (saved.offset, PAGE, True, False)
    assert said["vm_description"] == (name != "no-vmdesc")
    assert said["stream_end"] == said["size"] == saved.path.stat().st_size
    assert said["warnings"] == (["no VM description"] if name == "no-vmdesc" else [])
    assert [shape(block) for block in said["blocks"]] == [
        (each.name, each.used, each.record, each.bitmap, each.start, each.bits.sum(), len(each.bits))
        for each in expected.blocks.values()
    ]


def shape(block: dict[str, Any]) -> tuple[Any, ...]:
    names = ("idstr", "used_length", "record_offset", "bitmap_offset", "pages_offset", "data_pages", "pages")
    return tuple(block[name] for name in names)


@pytest.mark.parametrize("name", VARIANTS)
def test_device_sections_begin_and_end_where_the_vm_description_says(
    qemu_files: dict[str, SavedGuest], name: str
) -> None:
    expected = stored(qemu_files, name)
    devices = report("inspect", qemu_files[name].uri)["devices"]
    assert [
        (each["name"], each["instance_id"], each["version_id"], each["offset"], each["length"]) for each in devices
    ] == [(each.name, each.instance, each.version, each.offset, each.length) for each in expected.sections]
    assert len(devices) >= 30
    assert devices[-1]["offset"] + devices[-1]["length"] == expected.eof


def test_inspect_names_machine_and_blocks_as_qemu_does(qemu_files: dict[str, SavedGuest]) -> None:
    saved = qemu_files["plain"]
    said = report("inspect", saved.uri)
    with saved.destination() as guest:
        guest.load(saved.uri)
        assert guest.qmp("qom-get", path="/machine", property="type") == f"{said['machine']}-machine"
        blocks = [(block.name, block.used) for block in guest.ramblocks()]
    assert [(block["idstr"], block["used_length"]) for block in said["blocks"]] == blocks


@pytest.mark.parametrize("name", VARIANTS)
def test_read_pages_gives_the_ram_of_every_block(qemu_files: dict[str, SavedGuest], name: str) -> None:
    saved = qemu_files[name]
    with open_image(saved.uri) as image:
        for block, raw in saved.blocks.items():
            ram = raw.read_bytes()
            pages = len(ram) // PAGE
            assert image.read_pages(block, 0, pages) == ram, block
            assert image.read_pages(block, pages - 1, 1) == ram[-PAGE:], block
        assert [each.block.idstr for each in image.blocks] == list(saved.blocks)


@pytest.mark.parametrize("name", VARIANTS)
def test_verify_accepts_qemus_file_and_counts_its_stale_pages(qemu_files: dict[str, SavedGuest], name: str) -> None:
    saved = qemu_files[name]
    stale = sum(block.stale() for block in read_stored(saved.path, saved.offset).blocks.values())
    assert (stale > 0) == (name == "live")
    quick, full = report("verify", "--quick", saved.uri), report("verify", saved.uri)
    assert (quick["stale_pages"], full["stale_pages"]) == (None, stale)
    assert (full["ok"], full["digests"], full["differences"]) == (True, False, [])


@pytest.mark.parametrize("name", VARIANTS)
def test_verify_compares_every_block_with_its_raw_copy(qemu_files: dict[str, SavedGuest], name: str) -> None:
    saved = qemu_files[name]
    ram = [option for block, raw in saved.blocks.items() for option in ("--ram", f"{block}={raw}")]
    assert report("verify", saved.uri, *ram)["ram"] == list(saved.blocks)


def test_diff_finds_no_page_between_any_two_ways_to_save_one_guest(qemu_files: dict[str, SavedGuest]) -> None:
    plain, *others = (qemu_files[name].uri for name in VARIANTS if name not in ("live", "numa"))
    for other in others:
        found = report("diff", plain, other)
        assert (found["equal"], found["differing_pages"]) == (True, 0)


@pytest.mark.parametrize("name", ["offset-2m", "offset-123"])
def test_a_stream_is_not_found_where_it_does_not_start(qemu_files: dict[str, SavedGuest], name: str) -> None:
    for uri in (qemu_files[name].path, f"{qemu_files[name].uri}1"):
        refused(run("verify", "--quick", uri), 3, "not a migration stream")


@pytest.mark.parametrize("verb", ["verify", "verify --quick", "diff", "restore"])
def test_a_background_snapshot_is_refused_for_its_empty_bitmap(
    background_snapshot: SavedGuest, qemu_files: dict[str, SavedGuest], tmp_path: Path, verb: str
) -> None:
    target = tmp_path / "ram"
    more = {"diff": [qemu_files["plain"].uri], "restore": ["--ram", f"m={target}"]}.get(verb, [])
    result = run(*verb.split(), background_snapshot.uri, *more)
    message = "block 'm' has pages but an empty bitmap, and there is no RAM END section"
    refused(result, 3, message, hint="background snapshot, which loses the bitmaps")
    assert not target.exists()


def test_inspect_warns_of_a_background_snapshot(background_snapshot: SavedGuest) -> None:
    said = report("inspect", background_snapshot.uri)
    assert not said["ram_ended"]
    assert [block["data_pages"] for block in said["blocks"]] == [0] * len(said["blocks"])
    assert said["warnings"] == [
        "no RAM END section: the save was interrupted, or is a background snapshot without bitmaps"
    ]
