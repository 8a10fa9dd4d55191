"""A file outlives an upgrade of QEMU, and the way back: machine types have versions, which every QEMU keeps for years.

The oldest and the newest QEMU in PATH are checked against each other.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from support.cli import call, refused
from support.command import report
from support.qemu import QemuProcess, Ram, missing
from support.qemu_boot import BootFolder
from support.qemu_files import SavedGuest
from support.qemu_saved import WAYS_TO_LOAD, contents, differences
from support.qemu_tools import all_qemus, require_qemu

DEVICES = ("-smp", "2", "-device", "VGA", "-device", "virtio-net-pci", "-device", "virtio-rng-pci")
BY = ("us", "QEMU")


@dataclass(frozen=True)
class Crossing:
    """From a QEMU to another one, which can be what the first one was."""

    source: str
    destination: str
    machine: str
    """The machine type that both have."""


@pytest.fixture(scope="module", params=["upgrade", "way back"])
def crossing(request: pytest.FixtureRequest) -> Crossing:
    found = all_qemus()
    if len(found) < 2:
        missing("one version of QEMU is in PATH, two are needed: CONTRIBUTING.md says how to have them")
    (oldest, old), *_, (_, new) = found.items()
    source, destination = (old, new) if request.param == "upgrade" else (new, old)
    return Crossing(source, destination, "pc-q35-{}.{}".format(*oldest))


@dataclass(frozen=True)
class Crossed:
    """A stopped guest of the source, saved by us and by its QEMU."""

    files: dict[str, Path]
    args: tuple[str, ...]
    ram: dict[str, bytes]
    """Its RAMBlocks."""


@pytest.fixture(scope="module")
def crossed(crossing: Crossing, ticker: list[str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crossed]:
    folder = tmp_path_factory.mktemp("crossed")
    files = {by: folder / by for by in BY}
    args = (*ticker, *DEVICES)
    with QemuProcess(*args, machine=crossing.machine, program=crossing.source) as guest:
        guest.wait_serial("C")
        guest.stop()
        report("save", files["us"], "--qmp", guest.monitor_path)
        guest.migrate(f"file:{files['QEMU']}")
        yield Crossed(files, args, contents(guest))


@pytest.mark.parametrize("way", ["plain", "multifd 2", "direct-io"])
@pytest.mark.parametrize("by", BY)
def test_the_other_qemu_loads_the_file_and_the_guest_goes_on(
    crossing: Crossing, crossed: Crossed, by: str, way: str
) -> None:
    with QemuProcess(*crossed.args, machine=crossing.machine, program=crossing.destination, incoming=True) as guest:
        guest.load(f"file:{crossed.files[by]}", *WAYS_TO_LOAD[way])
        guest.stop()
        assert differences(crossed.ram, contents(guest)) == {}
        guest.cont()
        assert guest.complaints() == []
        guest.wait_serial("[A-Z]{3}")


@pytest.mark.parametrize("by", BY)
def test_what_the_other_qemu_makes_of_the_file_is_what_the_file_says(
    crossing: Crossing, crossed: Crossed, tmp_path: Path, by: str
) -> None:
    with BootFolder(tmp_path / "boot") as boot:
        line = [crossing.destination, *boot.line(*crossed.args, machine=crossing.machine)[1:]]
        found = report("verify", crossed.files[by], "--load", "--run-dir", boot.run_dir, "--", *line)
    assert found["ok"]


@pytest.mark.parametrize("by", BY)
def test_the_file_is_read_and_says_what_it_is(crossing: Crossing, crossed: Crossed, by: str) -> None:
    assert report("verify", crossed.files[by])["ok"]
    told = report("inspect", crossed.files[by])
    assert told["machine"] == crossing.machine
    assert {block["idstr"]: block["used_length"] for block in told["blocks"]} == {
        name: len(data) for name, data in crossed.ram.items()
    }
    assert report("diff", crossed.files["us"], crossed.files["QEMU"])["equal"]


@pytest.fixture(scope="module")
def older(qemu_files: dict[str, SavedGuest], tmp_path_factory: pytest.TempPathFactory) -> SavedGuest:
    """Of an older machine type than the one that ``-M q35`` means, which every QEMU has that has mapped-ram."""
    plain = qemu_files["plain"]
    saved = replace(plain, path=tmp_path_factory.mktemp("older") / "vm.mr", machine="pc-q35-9.0")
    with QemuProcess(*saved.args, ram=saved.ram, machine=saved.machine, paused=True) as guest:
        report("save", saved.path, "--qmp", guest.monitor_path)
    return saved


@pytest.mark.parametrize("verb", [("restore",), ("clone",), ("verify", "--load")], ids=" ".join)
def test_a_machine_type_without_version_means_another_one_by_now_and_what_to_say_is_said(
    older: SavedGuest, tmp_path: Path, verb: tuple[str, ...]
) -> None:
    name, *options = verb
    with BootFolder(tmp_path / "boot") as boot:
        argv = [name, older.path, *options, "--run-dir", boot.run_dir, "--"]
        said = "the file has machine type 'pc-q35-9.0', this QEMU has 'pc-q35-"
        refused(call(*argv, *boot.line(*older.args, ram=Ram(backend="private"))), 2, said, "with -M pc-q35-9.0")


def test_the_hint_is_what_helps(older: SavedGuest, tmp_path: Path) -> None:
    with BootFolder(tmp_path / "boot") as boot:
        argv = ["verify", older.path, "--load", "--run-dir", boot.run_dir, "--"]
        line = [require_qemu(), *boot.line(*older.args, ram=older.ram, machine="pc-q35-9.0")[1:]]
        assert report(*argv, *line)["ok"]
