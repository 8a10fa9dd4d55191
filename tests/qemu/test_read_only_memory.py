"""Memory that a guest cannot write: no QEMU can load it, so it is refused; a private copy of the same file is not."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.cli import call, refused, untouched
from support.command import report
from support.qemu import QemuDied, QemuError, QemuProcess
from support.qemu_boot import BootFolder
from support.qemu_saved import migrate

MIB = 1 << 20
MACHINE = "q35,nvdimm=on"
SIZE = ("-m", "64M,slots=2,maxmem=1G")
READ_ONLY = "readonly=on,share=on"
PRIVATE = "readonly=on,share=off,rom=off"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A root image, as an NVDIMM shows it to many guests."""
    path = tmp_path / "root.img"
    path.write_bytes(bytes(range(256)) * (16 * MIB // 256))
    return path


def nvdimm(image: Path, backed: str) -> tuple[str, ...]:
    unarmed = ",unarmed=on" if backed == READ_ONLY else ""
    backend = f"memory-backend-file,id=nv,size=16M,mem-path={image},{backed}"
    return *SIZE, "-object", backend, "-device", f"nvdimm,memdev=nv{unarmed}"


def test_it_is_refused_by_name_and_qemu_cannot_load_its_own_file(qemu_binary: str, tmp_path: Path, image: Path) -> None:
    args, folder, qemus = nvdimm(image, READ_ONLY), tmp_path / "folder", tmp_path / "qemus"
    folder.mkdir()
    with QemuProcess(*args, ram=None, machine=MACHINE, paused=True) as guest:
        with untouched(folder):
            result = call("save", folder / "saved", "--qmp", guest.monitor_path)
            refused(result, 4, "block 'nv' is read-only memory (readonly=on)", "readonly=on,share=off,rom=off")
        migrate(guest, qemus)
    with (
        QemuProcess(*args, ram=None, machine=MACHINE, incoming=True) as stock,
        pytest.raises((QemuDied, QemuError)),
    ):
        stock.load(f"file:{qemus}")


def test_a_private_copy_is_saved_and_goes_into_no_read_only_memory(
    qemu_binary: str, tmp_path: Path, image: Path, boot: BootFolder
) -> None:
    path, args = tmp_path / "saved", nvdimm(image, PRIVATE)
    with QemuProcess(*args, ram=None, machine=MACHINE, paused=True) as guest:
        report("save", path, "--qmp", guest.monitor_path)
    image.write_bytes(bytes(16 * MIB))  # the file has all of it
    with QemuProcess(*args, ram=None, machine=MACHINE, incoming=True) as stock:
        stock.load(f"file:{path}")
        assert stock.read_block("nv") == bytes(range(256)) * (16 * MIB // 256)
    line = boot.line(*nvdimm(image, READ_ONLY), ram=None, machine=MACHINE)
    refused(boot.attempt("restore", path, line=line), 2, "block 'nv' is read-only in this QEMU, which cannot load it")
