"""``restore FILE -- qemu ...``: the guest goes on where it was saved, in a QEMU that needs the command no more."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.cli import done, refused, run
from support.command import report
from support.examples import unless_thorough
from support.qemu import QemuProcess, Ram
from support.qemu_boot import BootFolder, Guest, sha256
from support.qemu_files import SavedGuest
from support.qemu_linux import LinuxGuest
from support.qemu_monitor import Monitor

MIB = 1 << 20
RAM = Ram(256 * MIB)
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
MD5 = LinuxGuest.md5(4)
MULTIFD = ("--channels", "2", "--experimental-multifd")


@pytest.fixture
def short() -> Iterator[BootFolder]:
    """One with a short name: with that of a new folder below, it has to do for a socket."""
    with tempfile.TemporaryDirectory() as parent, BootFolder(Path(parent) / "boot") as folder:
        yield folder


def capabilities(monitor: Monitor) -> dict[str, bool]:
    return {each["capability"]: each["state"] for each in monitor.execute("query-migrate-capabilities", {}, 10)}


WAYS: dict[str, tuple[str, ...]] = {
    "private": (),
    "multifd, verified": ("--verify", *MULTIFD),
    "shared": ("--shared",),
    "shared, by two workers": ("--shared", *MULTIFD),
    "in a file": ("--ram", "m=ram"),
}


@pytest.mark.parametrize("way", unless_thorough(["multifd, verified", "shared, by two workers", "in a file"], WAYS))
def test_a_linux_guest_goes_on_where_it_was_saved(
    saved: tuple[Path, int], linux: LinuxGuest, boot: BootFolder, tmp_path: Path, way: str
) -> None:
    path, number = saved
    options = [option.replace("m=", f"m={tmp_path}/") for option in WAYS[way]]
    report, (guest,) = boot.start("restore", path, *options, line=boot.line(*linux.args(), ram=RAM))
    guest.wait_ticks(MD5, after=number)
    assert guest.status() == "running"
    assert os.getsid(guest.pid) == guest.pid
    assert (report["verified"], report["channels"]) == ("verified" in way, 2 if MULTIFD[0] in options else 1)
    in_file = (tmp_path / "ram").exists()
    assert in_file == ("file" in way)
    if in_file:
        status = (tmp_path / "ram").stat()
        assert (stat.S_IMODE(status.st_mode), status.st_size) == (0o600, RAM.size)
    shared = "--shared" in options or in_file
    assert (report["seconds"]["fill"] > 0) == shared
    assert len(report["changes"]) == shared
    if shared:
        place = f"the file '{tmp_path / 'ram'}'" if in_file else "anonymous"
        assert report["changes"][0].startswith(f"memory-backend-ram 'm' is now {place}")
        assert "/proc/" not in report["changes"][0]
    guest.terminate()
    assert (tmp_path / "ram").exists() == in_file


def test_a_restored_guest_can_be_saved_again_and_by_its_qemu_too(
    saved: tuple[Path, int], linux: LinuxGuest, boot: BootFolder, tmp_path: Path
) -> None:
    line = boot.line(*linux.args(), ram=RAM)
    with QemuProcess(ram=RAM, paused=True) as other:
        defaults = other.qmp("query-migrate-capabilities")
        parameters = other.qmp("query-migrate-parameters")
    _, (guest,) = boot.start("restore", saved[0], "--paused", *MULTIFD, line=line)
    assert guest.status() == "paused"
    report("save", tmp_path / "again", "--qmp", guest.qmp_path)
    assert report("diff", saved[0], tmp_path / "again")["equal"]
    guest.qmp("cont")
    guest.wait_ticks(MD5, after=saved[1])
    report("save", tmp_path / "later", "--qmp", guest.qmp_path)
    assert report("diff", saved[0], tmp_path / "later", code=1)["differing_pages"] > 0
    with guest.monitor() as monitor:
        assert monitor.execute("query-migrate-capabilities", {}, 10) == defaults
        assert monitor.execute("query-migrate-parameters", {}, 10) == parameters
        monitor.migration("migrate", f"file:{tmp_path / 'stream'}", (), {}, 60)
    assert (tmp_path / "stream").stat().st_size > 4 * MIB


def test_a_paused_guest_runs_after_cont(saved: tuple[Path, int], linux: LinuxGuest, boot: BootFolder) -> None:
    report, (guest,) = boot.start("restore", saved[0], "--shared", "--paused", line=boot.line(*linux.args(), ram=RAM))
    assert (report["guests"][0]["status"], guest.status()) == ("paused", "paused")
    guest.qmp("cont")
    guest.wait_ticks(MD5, after=saved[1])


def test_what_people_read_names_guest_and_socket(saved: tuple[Path, int], linux: LinuxGuest, short: BootFolder) -> None:
    """In a new folder of its own, where nobody names one; serial line in a file, and -S instead of --paused."""
    line = short.line(*linux.args(), "-S", ram=RAM)
    line[line.index("-serial") + 1] = f"file:{short.path / 'serial'}"
    runtime = short.path / "runtime"
    runtime.mkdir()
    result = done(run("restore", saved[0], "--", *line, env={"XDG_RUNTIME_DIR": str(runtime)}))
    (folder,) = runtime.iterdir()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    (pid,) = short.qemus()
    first, end, second = result.out.splitlines()
    assert first == f"guest 0: paused, pid {pid}, QMP socket {folder}/0/qmp"
    assert end.startswith("to end it: parallel-fixedram guests stop ")
    assert end.endswith("; guests lists all there are")
    assert second.startswith("private memory, loaded by QEMU: ")
    assert "fill" not in second
    assert result.err == ""
    assert (folder / "0" / "pid").read_text() == f"{pid}\n"


OWN_FILES: list[tuple[str, tuple[str, ...]]] = [
    *((name, ()) for name in ("plain", "offset-123", "uuid", "no-vmdesc")),
    *((name, ("--shared",)) for name in ("live", "numa")),
    *((name, MULTIFD) for name in ("multifd", "live", "numa")),
]


@pytest.mark.parametrize(("name", "way"), OWN_FILES)
def test_qemus_own_file_goes_on(
    qemu_files: dict[str, SavedGuest], boot: BootFolder, name: str, way: tuple[str, ...]
) -> None:
    """All but one were saved while the guest stood still; it goes on anyway."""
    file = qemu_files[name]
    _, (guest,) = boot.start("restore", file.uri, *way, line=boot.line_of(file))
    assert guest.status() == "running"
    assert guest.wait_serial("[A-Z]{3}")[0] in LETTERS + LETTERS


def read_memory(guest: Guest, size: int, path: Path) -> bytes:
    """Guest memory from address 0."""
    guest.qmp("pmemsave", val=0, size=size, filename=str(path))
    return path.read_bytes()


@pytest.mark.parametrize("way", [(), ("--shared",)], ids=["private", "shared"])
@pytest.mark.parametrize("name", ["live", "numa"])
def test_paused_it_has_the_ram_that_was_saved(
    qemu_files: dict[str, SavedGuest], boot: BootFolder, tmp_path: Path, name: str, way: tuple[str, ...]
) -> None:
    file = qemu_files[name]
    _, (guest,) = boot.start("restore", file.uri, "--paused", *way, line=boot.line_of(file))
    assert guest.status() == "paused"
    main = [file.blocks[block] for block in ("n0", "n1", "m") if block in file.blocks]
    expected = b"".join(path.read_bytes() for path in main)
    # the BIOS's own place below 1 MiB is a device's memory
    found = read_memory(guest, len(expected), tmp_path / "dump")
    assert found[MIB:] == expected[MIB:]


def test_more_channels_need_the_flag_and_nothing_happens_without_it(
    saved: tuple[Path, int], linux: LinuxGuest, boot: BootFolder
) -> None:
    line = boot.line(*linux.args(), ram=RAM)
    refused(boot.attempt("restore", saved[0], "--channels", "2", line=line), 2, "", "--experimental-multifd")
    refused(boot.attempt("restore", saved[0], "--channels", "2", "--print", line=line), 2, "", "--experimental-multifd")


@contextlib.contextmanager
def flipped(path: Path, offset: int) -> Iterator[None]:
    """A file with one wrong bit for a while."""

    def flip() -> None:
        with path.open("r+b", buffering=0) as file:
            byte = os.pread(file.fileno(), 1, offset)[0]
            os.pwrite(file.fileno(), bytes([byte ^ 1]), offset)

    flip()
    try:
        yield
    finally:
        flip()


@pytest.mark.parametrize("way", [(), ("--ram", "m=ram")], ids=["private", "file"])
def test_a_page_that_does_not_match_its_digest_starts_no_qemu(
    saved: tuple[Path, int], linux: LinuxGuest, boot: BootFolder, tmp_path: Path, way: tuple[str, ...]
) -> None:
    (main,) = [block for block in report("inspect", saved[0])["blocks"] if block["idstr"] == "m"]
    program = tmp_path / "qemu"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    program.chmod(0o755)
    options = [option.replace("m=", f"m={tmp_path}/") for option in way]
    with flipped(saved[0], main["pages_offset"] + 16 * MIB):  # where Linux keeps itself
        result = boot.attempt("restore", saved[0], "--verify", *options, line=boot.line(ram=RAM, program=program))
    refused(result, 1, "block 'm' page 4096 at", "no guest was started")
    assert not (tmp_path / "started").exists()
    assert not (tmp_path / "ram").exists()


def test_one_node_in_a_file_and_one_in_anonymous_memory(
    qemu_files: dict[str, SavedGuest], boot: BootFolder, tmp_path: Path
) -> None:
    saved, ram = qemu_files["numa"], tmp_path / "ram"
    started, (guest,) = boot.start("restore", saved.path, "--ram", f"n1={ram}", line=boot.line_of(saved))
    assert guest.wait_serial("[A-Z]{3}")[0] in LETTERS + LETTERS
    assert started["changes"] == [
        "memory-backend-memfd 'n0' is now anonymous shared memory",
        f"memory-backend-ram 'n1' is now the file '{ram}' at 0x0, shared",
    ]


def test_a_file_that_is_there_already_is_filled_if_it_fits(
    qemu_files: dict[str, SavedGuest], boot: BootFolder, tmp_path: Path
) -> None:
    saved, ram = qemu_files["plain"], tmp_path / "ram"
    ram.write_bytes(b"old" * MIB)
    line = boot.line_of(saved)
    result = boot.attempt("restore", saved.path, "--ram", f"m={ram}", line=line)
    refused(result, 2, f"block 'm' has 67108864 bytes, its destination '{ram}' has 3145728\n")
    assert ram.read_bytes() == b"old" * MIB
    ram.write_bytes(b"old!" * (16 * MIB))
    _, (guest,) = boot.start("restore", saved.path, "--ram", f"m={ram}", "--paused", line=line)
    assert ram.read_bytes() == saved.blocks["m"].read_bytes()
    guest.qmp("cont")
    assert guest.wait_serial("[A-Z]{3}")[0] in LETTERS + LETTERS


def test_the_file_itself_is_no_memory_for_its_guest(qemu_files: dict[str, SavedGuest], boot: BootFolder) -> None:
    saved = qemu_files["plain"]
    before = sha256(saved.path)
    boot.attempt("restore", saved.path, "--ram", f"m={saved.path}", line=boot.line_of(saved))
    assert sha256(saved.path) == before


def test_a_block_that_is_no_main_memory_is_given_no_file(
    qemu_files: dict[str, SavedGuest], boot: BootFolder, tmp_path: Path
) -> None:
    saved = qemu_files["plain"]
    for more in ([], ["--print"]):
        result = boot.attempt("restore", saved.path, "--ram", f"pc.bios={tmp_path}/x", *more, line=boot.line_of(saved))
        refused(result, 2, "", None)
    refused(
        boot.attempt("restore", saved.path, "--ram", f"pc.bios={tmp_path}/x", line=boot.line_of(saved)),
        2,
        "block 'pc.bios' is not main memory of this guest, which has 'm'\n",
    )
    assert not (tmp_path / "x").exists()
