"""Which disks a QEMU says that its guest writes to: whatever it says, the answer is a list or an error of QEMU's."""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallel_fixedram.core.errors import HostError, MachineError
from parallel_fixedram.host.files.open_files import OpenFiles
from parallel_fixedram.machines.qemu.drives import disk_names, find_drives, nodes_in_use, used_nodes

CACHE = {"writeback": True, "direct": True, "no-flush": False}


class Answers:
    """A Monitor that gives these answers."""

    name = "qmp"

    def __init__(self, **answers: Any) -> None:
        self.answers = {name.replace("_", "-"): answer for name, answer in answers.items()}

    def execute(self, command: str, arguments: Any = None) -> Any:
        return self.answers[command]

    def malformed(self, command: str, answer: object) -> MachineError:
        return MachineError(f"malformed {command}")


def guest(path: Path | str) -> dict[str, Any]:
    """A disk in one file, as a QEMU describes it."""
    image = {"virtual-size": 4096, "filename": str(path), "format": "raw"}
    inserted = {"ro": False, "node-name": "#block1", "drv": "raw", "file": str(path), "image": image, "cache": CACHE}
    return {
        "query_block": [
            {"device": "d", "qdev": "/machine/peripheral/disk/virtio-backend", "removable": False, "inserted": inserted}
        ],
        "query_blockstats": [{"node-name": "#block1", "parent": {"node-name": "#block0"}}],
        "query_named_block_nodes": [
            {"node-name": "#block1", "drv": "raw", "file": str(path), "image": image},
            {"node-name": "#block0", "drv": "file", "file": str(path), "image": image},
        ],
        "qom_list": [{"name": "share-rw", "type": "bool"}],
        "qom_get": False,
    }


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file that this process has open, as a QEMU has."""
    path = tmp_path_factory.mktemp("disk") / "disk.img"
    with path.open("w+b") as file:
        file.truncate(4096)
        yield path


def test_a_disk_is_found_with_the_file_that_it_is_in(disk: Path) -> None:
    (found,) = find_drives(Answers(**guest(disk)), os.getpid())  # type: ignore[arg-type]
    assert (found.disk.device, found.disk.node, found.disk.size, found.why_not) == ("disk", "#block1", 4096, "")
    assert [(each.path, each.format) for each in found.disk.images] == [(str(disk), "raw")]
    assert (found.nodes, found.cache, found.shared) == (("#block1",), {"direct": True, "no-flush": False}, False)


@pytest.mark.parametrize(
    ("qdev", "device", "name"),
    [
        ("scsi", "", "scsi"),
        ("/machine/peripheral/a/virtio-backend", "d", "a"),
        ("/machine/unattached/device[3]", "ide0-hd0", "ide0-hd0"),
        ("/machine/peripheral-anon/device[1]", "", "/machine/peripheral-anon/device[1]"),
    ],
)
def test_a_disk_is_called_what_people_call_it(qdev: str, device: str, name: str) -> None:
    answers = guest("/d")
    answers["query_block"][0] |= {"qdev": qdev, "device": device}
    assert disk_names(Answers(**answers)) == [name]  # type: ignore[arg-type]


plain = st.none() | st.booleans() | st.integers() | st.text(max_size=5)
anything = st.recursive(plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner))


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths to everything in a JSON value."""
    found = [at]
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        found += places(inner, (*at, key))
    return found


WHOLE = guest("/disk.img")


@given(st.sampled_from(places(WHOLE)[1:]), anything)
def test_whatever_it_says_is_a_list_or_an_error_of_qemus(place: tuple[Any, ...], value: Any) -> None:
    answers = copy.deepcopy(WHOLE)
    inner: Any = answers
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    monitor: Any = Answers(**answers)
    for ask in (lambda: find_drives(monitor, os.getpid()), lambda: disk_names(monitor),
                lambda: nodes_in_use(monitor), lambda: used_nodes(monitor)):  # fmt: skip
        with contextlib.suppress(MachineError, HostError):
            ask()


def test_a_name_counts_if_it_leads_to_the_open_file_from_here(disk: Path, tmp_path: Path) -> None:
    files = OpenFiles(os.getpid())
    link = tmp_path / "link"
    link.symlink_to(disk)
    other = tmp_path / disk.name
    other.write_bytes(b"not open")
    assert files.find(str(disk)) == str(disk)
    assert files.find(str(link)) == str(link)
    assert files.find(str(other)) is None
    assert files.find(disk.name) == files.find(f"../../{disk.parent.name}/{disk.name}") == str(disk)
    assert files.find("/dev/fdset/3") is None
    with other.open("rb"):
        assert OpenFiles(os.getpid()).find(disk.name) is None  # which of the two?
    moved = disk.with_name("moved")
    os.rename(disk, moved)
    assert files.find(str(disk)) is None
    os.rename(moved, disk)
