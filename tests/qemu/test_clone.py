"""``clone FILE -- qemu ...``: guests that share the file's page arrays, and nothing of what they write."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.cli import Result, done, refused, run
from support.command import report
from support.qemu import QemuProcess, Ram, boot_from
from support.qemu_boot import BootFolder, sha256
from support.qemu_linux import LinuxGuest

from parallel_fixedram.experiments.boot_sector import boot_image
from parallel_fixedram.image.image import open_image
from parallel_fixedram.image.stale import punch_stale_pages

MIB = 1 << 20
RAM = Ram(256 * MIB)
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
MD5 = LinuxGuest.md5(4)
COUNT = 2


def test_clones_that_write_change_neither_the_file_nor_each_other(
    saved: tuple[Path, int], linux: LinuxGuest, boot: BootFolder
) -> None:
    path, number = saved
    before = sha256(path)
    line = boot.line(*linux.args(), ram=RAM, clones=COUNT)
    started, guests = boot.start("clone", path, "--count", COUNT, line=line)
    assert [each["status"] for each in started["guests"]] == ["running"] * COUNT
    assert len({each["id"] for each in started["guests"]}) == COUNT
    for guest in guests:
        guest.wait_ticks(MD5, after=number)
    sums = set()
    for index, guest in enumerate(guests):
        guest.send_serial(f"dirty {1 + index}")
        guest.wait_serial(f"dirtied {1 + index}\r")
    guests[0].send_serial("zero 2")
    guests[0].wait_serial("zeroed 2\r")
    for guest in guests:
        guest.send_serial("sum")
        found = guest.wait_serial(r"sum (\w+) (\w+)\r")
        assert found[1] == MD5
        sums.add(found[2])
    assert len(sums) == COUNT
    for guest in guests:
        guest.wait_serial(rf"tick \d+ {MD5}\r")
    assert sha256(path) == before
    report("verify", path)


def test_a_clone_is_saved_and_that_is_cloned(
    saved: tuple[Path, int], linux: LinuxGuest, boot: BootFolder, tmp_path: Path
) -> None:
    args = linux.args()
    _, (first,) = boot.start("clone", saved[0], line=boot.line(*args, ram=RAM))
    number = first.wait_ticks(MD5, after=saved[1])
    second = tmp_path / "second.mr"
    report("save", second, "--qmp", first.qmp_path)
    with BootFolder(tmp_path / "boot2") as again:
        _, guests = again.start("clone", second, "--count", 2, line=again.line(*args, ram=RAM, clones=2))
        for guest in guests:
            guest.wait_ticks(MD5, after=number + 1)
        first.wait_serial(rf"tick \d+ {MD5}\r")


def test_a_paused_clone_is_the_file_page_by_page(saved: tuple[Path, int], linux: LinuxGuest, boot: BootFolder) -> None:
    _, (guest,) = boot.start("clone", saved[0], "--paused", line=boot.line(*linux.args(), ram=RAM))
    assert guest.status() == "paused"
    report("save", boot.path / "again", "--qmp", guest.qmp_path)
    assert report("diff", saved[0], boot.path / "again")["equal"]
    guest.qmp("cont")
    guest.wait_ticks(MD5, after=saved[1])


def test_what_people_read_names_guests_and_what_was_replaced(
    saved: tuple[Path, int], linux: LinuxGuest, boot: BootFolder
) -> None:
    line = boot.line(*linux.args(), ram=RAM, clones=2)
    result = done(run("clone", saved[0], "--count", 2, "--run-dir", boot.run_dir, "--", *line))
    *guests, end, how = result.out.splitlines()
    assert end.startswith("to end them: parallel-fixedram guests stop ")
    pids = []
    for number, text in enumerate(guests):
        found = re.fullmatch(r"guest (\d): running, pid (\d+), QMP socket (.*)", text)
        assert found
        assert (int(found[1]), found[3]) == (number, f"{boot.run_dir}/{number}/qmp")
        pids.append(int(found[2]))
    assert sorted(pids) == boot.qemus()
    assert how.startswith("copy-on-write, mapped from the file: ")
    replaced, shared, clocks = result.err.splitlines()
    start = f"parallel-fixedram: note: memory-backend-ram 'm' is now the file '{saved[0]}' at 0x"
    assert replaced.startswith(start)
    assert replaced.endswith(", copy-on-write")
    start = (
        "parallel-fixedram: note: the saved machine has no vmgenid device: clones share random numbers to come, MAC "
    )
    assert shared.startswith(start)
    assert clocks.startswith("parallel-fixedram: note: the clocks of clones go on from the time of the save: ")


HALF = "size=32M"
MACHINES: dict[str, tuple[Ram | None, tuple[str, ...]]] = {
    "plain -m": (Ram(backend="default"), ()),
    "memfd": (Ram(backend="memfd"), ()),
    "two nodes": (
        None,
        (
            *("-m", "64M", "-object", f"memory-backend-memfd,id=n0,{HALF},share=on", "-numa", "node,memdev=n0"),
            *("-object", f"memory-backend-ram,id=n1,{HALF}", "-numa", "node,memdev=n1"),
        ),
    ),
    "dimm": (
        None,
        (
            *("-m", "size=64M,slots=2,maxmem=512M", "-object", "memory-backend-ram,id=d0,size=128M"),
            *("-device", "pc-dimm,memdev=d0"),
        ),
    ),
    "devices": (Ram(), ("-device", "VGA", "-netdev", "user,id=n", "-device", "virtio-net-pci,netdev=n", "-smp", "2")),
}
CHANGES = {"two nodes": 2, "dimm": 2}


@pytest.mark.parametrize("machine", MACHINES)
def test_every_kind_of_memory_is_cloned_and_restored(qemu_binary: str, boot: BootFolder, machine: str) -> None:
    ram, more = MACHINES[machine]
    image, path = boot.path / "image", boot.path / "vm.mr"
    image.write_bytes(boot_image(end=40 * MIB))
    args = (*boot_from(image), *more)
    with QemuProcess(*args, ram=ram) as source:
        source.wait_serial("C")
        report("save", path, "--qmp", source.monitor_path)
    before = sha256(path)
    started, guests = boot.start("clone", path, "--count", 2, line=boot.line(*args, ram=ram, clones=2))
    assert len(started["changes"]) == CHANGES.get(machine, 1)
    for guest in guests:
        assert guest.wait_serial("[A-Z]{30}")[0] in LETTERS * 3
    with BootFolder(boot.path / "two") as other:
        _, (guest,) = other.start("restore", path, "--shared", line=other.line(*args, ram=ram))
        assert guest.wait_serial("[A-Z]{3}")[0] in LETTERS + LETTERS
    assert sha256(path) == before


@pytest.mark.parametrize("count", ["0", "-1"])
def test_fewer_than_one_is_refused(saved: tuple[Path, int], boot: BootFolder, count: str) -> None:
    for more in ([], ["--print"]):
        result = boot.attempt("clone", saved[0], "--count", count, *more, line=boot.line(ram=RAM))
        refused(result, 2, f"{count} clones, at least 1 is needed\n", "")


def test_if_one_cannot_start_all_are_gone(saved: tuple[Path, int], linux: LinuxGuest, boot: BootFolder) -> None:
    """The third has a device of another number, which there is none of."""
    line = boot.line(*linux.args(), "-device", "pci-bridge,chassis_nr={n},id=b", ram=RAM, clones=3)
    refused(boot.attempt("clone", saved[0], "--count", "3", line=line), 4, "QEMU: -device pci-bridge,chassis_nr=0")


_COUNTED = """
import sys
from parallel_fixedram.cli import main
code = main.main()
print(next(line for line in open("/proc/self/io") if line.startswith("rchar")).split()[1], file=sys.stderr)
sys.exit(code)
"""


def test_cloning_reads_no_page_of_main_memory(qemu_binary: str, boot: BootFolder) -> None:
    """Eight times the memory, and eight times as much in it, are no more to read but for the bitmap.

    Zeros that take space, as gaps that were bridged do, would be looked at: here they are holes.
    """
    read = []
    for factor in (1, 8):
        ram = Ram(256 * MIB * factor)
        image, path = boot.path / "image", boot.path / f"vm{factor}.mr"
        image.write_bytes(boot_image(end=24 * MIB * factor))
        with QemuProcess(*boot_from(image), ram=ram) as source:
            source.wait_serial("A")
            report("save", path, "--qmp", source.monitor_path, "--durability", "none")
        with open_image(str(path)) as opened:
            punch_stale_pages(opened)
        with BootFolder(boot.path / str(factor * 10)) as folder:
            line = folder.line(*boot_from(image), ram=ram)
            argv = ("clone", path, "--run-dir", folder.run_dir, "--json", "--", *line)
            result: Result = run(*argv, python=("-c", _COUNTED))
            assert result.code == 0, result
            assert len(folder.qemus()) == 1
        read.append(int(result.err.splitlines()[-1]))
        path.unlink()
    assert abs(read[1] - read[0]) < MIB
