"""Machines of all kinds, saved while they run with ``save --qmp`` and loaded by a stock QEMU."""

from __future__ import annotations

import contextlib
import os
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.cli import call, done
from support.command import report
from support.examples import unless_thorough
from support.qemu import QemuProcess, Ram, boot_from
from support.qemu_linux import LinuxGuest
from support.qemu_reader import read_stored
from support.qemu_saved import KNOWN_MIB, WAYS_TO_LOAD, contents, differences, in_turn, save, wait_tick
from support.sources import huge_file

import parallel_fixedram
from parallel_fixedram.experiments.boot_sector import DISK_SECTORS, SECTOR, boot_image, disk_image

MIB = 1 << 20
GIB = 1 << 30
HUGE_PAGE = 2 * MIB
FOUR = ("--channels", 4, "--experimental-multifd")
MACHINES = ["q35", "pc"]
DEVICES = [
    *("-smp", "2", "-vga", "std", "-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net"),
    *("-device", "virtio-rng-pci"),
]


def disk(path: Path) -> list[str]:
    return ["-drive", f"file={path},format=raw,if=none,id=disk", "-device", "virtio-blk-pci,drive=disk"]


def written(path: Path) -> list[int]:
    """The numbers that the guest of ``disk_image`` has written to its disk last, ascending; none is left out."""
    image = path.read_bytes()
    numbers = [struct.unpack_from("<I", image, (1 + sector) * SECTOR)[0] for sector in range(DISK_SECTORS)]
    assert all(number % DISK_SECTORS == sector for sector, number in enumerate(numbers) if number)
    found = sorted(number for number in numbers if number)
    assert found == list(range(found[0], found[0] + len(found)))
    return found


@pytest.mark.parametrize("machine", MACHINES)
def test_a_guest_goes_on_writing_to_its_virtio_disk(qemu_binary: str, tmp_path: Path, machine: str) -> None:
    image, path = tmp_path / "image", tmp_path / "saved"
    image.write_bytes(disk_image())
    args = (*DEVICES, *disk(image))
    with QemuProcess(*args, ram=Ram(backend="memfd"), machine=machine) as source:
        source.wait_serial("[A-Z]{3}")
        save(source, tmp_path / "running", *FOUR)  # it goes on writing, so this file's disk is gone
        source.wait_serial("[A-Z]{3}")
        source.stop()
        save(source, path, *FOUR)
        before, letters, last = contents(source), source.take_serial(), written(image)[-1]
    with QemuProcess(*args, ram=Ram(backend="memfd"), machine=machine, incoming=True, paused=True) as destination:
        destination.load(f"file:{path}", *WAYS_TO_LOAD["multifd 2"])
        assert differences(before, contents(destination)) == {}
        destination.cont()
        letters += destination.wait_serial("[A-Z]{3}")[0]
        assert in_turn(letters)
        destination.stop()
        assert written(image)[-1] >= last + 2  # the first letter may be of the last number that the source wrote


@pytest.mark.parametrize("machine", unless_thorough(["q35"], MACHINES))
def test_a_linux_guest_with_devices_and_two_processors(linux: LinuxGuest, tmp_path: Path, machine: str) -> None:
    image, path = tmp_path / "image", tmp_path / "saved"
    image.write_bytes(bytes(MIB))
    args = (*linux.args(size_mib=KNOWN_MIB, tick=0.1), *DEVICES, *disk(image))
    with QemuProcess(*args, ram=Ram(256 * MIB, "memfd"), machine=machine) as source:
        before = wait_tick(source)
        save(source, path, *FOUR)
        source.take_serial()
        after = wait_tick(source)
        assert len(source.qmp("query-cpus-fast")) == 2
    with QemuProcess(*args, ram=Ram(256 * MIB, "memfd"), machine=machine, incoming=True) as destination:
        destination.load(f"file:{path}", *WAYS_TO_LOAD["direct-io"])
        assert before < wait_tick(destination) <= after + 1
        assert destination.complaints() == []


def mark(guest: QemuProcess, marker: bytes, *names: str) -> None:
    """Write into these blocks, a MiB before their ends."""
    with open(f"/proc/{guest.pid}/mem", "r+b", buffering=0) as memory:
        for block in guest.ramblocks():
            if block.name in names:
                assert os.pwrite(memory.fileno(), marker, block.hva + block.used - MIB) == len(marker)


def test_two_numa_nodes_one_of_them_shared(ticker: list[str], tmp_path: Path) -> None:
    path = tmp_path / "saved"
    nodes = (
        *("-m", "128M", "-smp", "2"),
        *("-object", "memory-backend-memfd,id=n0,size=64M,share=on", "-numa", "node,cpus=0,memdev=n0"),
        *("-object", "memory-backend-ram,id=n1,size=64M", "-numa", "node,cpus=1,memdev=n1"),
    )
    args = (*ticker, *nodes)
    with QemuProcess(*args, ram=None) as source:
        source.wait_serial("C")
        mark(source, b"the other node", "n1")
        save(source, path, *FOUR)
        assert in_turn(source.wait_serial("[A-Z]{3}")[0])
        source.stop()
        letters = source.take_serial()
        saved = save(source, path, *FOUR, "--overwrite")
        assert {"n0", "n1"} <= {block["idstr"] for block in saved["blocks"] if block["data_pages"]}
        before = contents(source)
    for way in unless_thorough(["direct-io"], ["plain", "direct-io"]):
        with QemuProcess(*args, ram=None, incoming=True, paused=True) as destination:
            destination.load(f"file:{path}", *WAYS_TO_LOAD[way])
            assert differences(before, contents(destination)) == {}
            destination.cont()
            assert in_turn(letters + destination.wait_serial("[A-Z]{3}")[0])


@pytest.mark.parametrize("machine", unless_thorough(["pc"], MACHINES))
def test_memory_that_was_plugged_in(ticker: list[str], tmp_path: Path, machine: str) -> None:
    path, marker, size = tmp_path / "saved", b"plugged in" * 500, 128 * MIB
    args = (*ticker, "-m", "64M,slots=2,maxmem=1G")
    plugged = (
        *("-object", "memory-backend-ram,id=more,size=128M"),
        *("-object", "memory-backend-memfd,id=shared,size=128M,share=on"),
        *("-device", "pc-dimm,id=dimm0,memdev=more", "-device", "pc-dimm,id=dimm1,memdev=shared"),
    )
    with QemuProcess(*args, ram=None, machine=machine) as source:
        source.wait_serial("C")
        source.qmp("object-add", qom_type="memory-backend-ram", id="more", size=size)
        source.qmp("object-add", qom_type="memory-backend-memfd", id="shared", size=size, share=True)
        source.qmp("device_add", driver="pc-dimm", id="dimm0", memdev="more")
        source.qmp("device_add", driver="pc-dimm", id="dimm1", memdev="shared")
        mark(source, marker, "more", "shared")
        save(source, path, *FOUR)
        assert in_turn(source.wait_serial("[A-Z]{3}")[0])
    with QemuProcess(*args, *plugged, ram=None, machine=machine, incoming=True) as destination:
        destination.load(f"file:{path}", *WAYS_TO_LOAD["multifd 8"])
        assert in_turn(destination.wait_serial("[A-Z]{3}")[0])
        for name in ("more", "shared"):
            assert destination.read_block(name)[size - MIB :].startswith(marker)


@contextlib.contextmanager
def hugetlbfs(folder: Path) -> Iterator[Path]:
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "hugetlbfs", "-o", "pagesize=2M", "hugetlbfs", folder], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip(f"mounting is not permitted here: {made.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


class TestHugePages:
    @pytest.mark.parametrize("share", ["on", "off"])
    def test_of_a_memfd(self, ticker: list[str], tmp_path: Path, share: str) -> None:
        self.check(ticker, tmp_path, f"memory-backend-memfd,id=m,size=64M,hugetlb=on,hugetlbsize=2M,share={share}")

    @pytest.mark.parametrize("share", ["on", "off"])
    def test_of_a_file(self, ticker: list[str], tmp_path: Path, share: str) -> None:
        with hugetlbfs(tmp_path / "huge") as folder:
            self.check(ticker, tmp_path, f"memory-backend-file,id=m,size=64M,mem-path={folder},share={share}")

    def check(self, ticker: list[str], folder: Path, backend: str) -> None:
        args = (*ticker, "-m", "64M", "-object", backend, "-machine", "memory-backend=m")
        path = folder / "saved"
        with huge_file(0, pool=64 * MIB // HUGE_PAGE):
            with QemuProcess(*args, ram=None) as source:
                assert source.ramblocks()[0].page_size == HUGE_PAGE
                source.wait_serial("C")
                save(source, path, *FOUR)
                assert in_turn(source.wait_serial("[A-Z]{3}")[0])
                source.stop()
                save(source, path, *FOUR, "--overwrite")
                before, letters = contents(source), source.take_serial()
                assert read_stored(path).blocks["m"].contents() == before["m"]
            with QemuProcess(*args, ram=None, incoming=True, paused=True) as destination:
                destination.load(f"file:{path}", *WAYS_TO_LOAD["multifd 2"])
                assert differences(before, contents(destination)) == {}
                destination.cont()
                assert in_turn(letters + destination.wait_serial("[A-Z]{3}")[0])


@pytest.mark.parametrize("backend", ["memory-backend-memfd,share=on", "memory-backend-ram,reserve=off"])
def test_a_large_guest_that_has_touched_little(ticker: list[str], tmp_path: Path, backend: str) -> None:
    path = tmp_path / "saved"
    args = (*ticker, "-m", "32G", "-object", f"{backend},id=m,size=32G", "-machine", "memory-backend=m")
    with QemuProcess(*args, ram=None) as source:
        source.wait_serial("C")
        saved = save(source, path, *FOUR)
        assert in_turn(source.wait_serial("[A-Z]{3}")[0])
    assert saved["bytes"]["ram"] > 32 * GIB
    assert path.stat().st_size > 32 * GIB
    assert saved["bytes"]["allocated"] == path.stat().st_blocks * 512 < 128 * MIB
    print({name: round(value, 3) for name, value in saved["seconds"].items()}, saved["bytes"])
    with QemuProcess(*args, ram=None, incoming=True) as destination:
        destination.load(f"file:{path}")
        assert in_turn(destination.wait_serial("[A-Z]{3}")[0])


class TestClone:
    """A guest whose RAM is a private mapping of the page array of a file."""

    def test_it_can_be_saved_and_what_it_never_touched_comes_from_the_file(
        self, qemu_binary: str, tmp_path: Path
    ) -> None:
        first, second, image = tmp_path / "first", tmp_path / "second", tmp_path / "image"
        image.write_bytes(boot_image(first=2 * MIB, end=4 * MIB))
        far = bytes(range(256)) * 64  # where the guest never looks
        with QemuProcess(*boot_from(image), ram=Ram(backend="memfd")) as guest:
            guest.wait_serial("C")
            hva = guest.ramblocks()[0].hva
            with open(f"/proc/{guest.pid}/mem", "r+b", buffering=0) as memory:
                os.pwrite(memory.fileno(), far, hva + 30 * MIB)
            save(guest, first)
        original = read_stored(first).blocks["m"].contents()
        told = parallel_fixedram.inspect(str(first))
        main = next(block for block in told.blocks if block.idstr == "m")
        backend = (
            f"memory-backend-file,id=m,size=64M,mem-path={first},offset={main.pages_offset},"
            "share=off,readonly=on,rom=off"
        )
        args = (*boot_from(image), "-m", "64M", "-object", backend, "-machine", "memory-backend=m")
        with QemuProcess(*args, ram=None, incoming=True) as clone:
            clone.load(f"file:{first},offset={told.clone_offset}")
            clone.wait_serial("[A-Z]{3}")
            save(clone, second, *FOUR)
            letters = clone.wait_serial("[A-Z]{3}")[0]
            clone.stop()
            letters += clone.take_serial()
            while contents(clone)["m"] == original:  # its counters come round every eight letters
                clone.cont()
                letters += clone.wait_serial("[A-Z]")[0]
                clone.stop()
                letters += clone.take_serial()
            assert in_turn(letters)
            save(clone, second, *FOUR, "--overwrite")
            before = contents(clone)
        stored = read_stored(second).blocks["m"]
        assert stored.contents() == before["m"]
        assert before["m"][30 * MIB :].startswith(far)
        assert differences({"m": original}, {"m": before["m"]})  # and what it touched does not
        done(call("verify", second))
        assert not report("diff", first, second, code=1)["equal"]
        first.unlink()  # the new file stands for itself
        with QemuProcess(*boot_from(image), ram=Ram(), incoming=True, paused=True) as destination:
            destination.load(f"file:{second}", *WAYS_TO_LOAD["direct-io"])
            assert differences(before, contents(destination)) == {}
            destination.cont()
            assert in_turn(letters[-1] + destination.wait_serial("[A-Z]{3}")[0])
