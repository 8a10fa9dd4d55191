"""``save --qmp`` of a running QEMU: what a stock QEMU makes of the file, and what the guest and its QEMU notice."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from support.cli import Result, call, refused, run, untouched
from support.examples import unless_thorough
from support.qemu import Backend, QemuProcess, Ram, boot_from, require_tool
from support.qemu_linux import LinuxGuest
from support.qemu_reader import read_stored
from support.qemu_saved import KNOWN_MIB, TICK, WAYS_TO_LOAD, contents, differences, in_turn, migrate, save, wait_tick

import parallel_fixedram
from parallel_fixedram.core.errors import MachineError
from parallel_fixedram.experiments.boot_sector import boot_image
from parallel_fixedram.machines.qemu.machine import QemuMachine

MIB = 1 << 20
PAGE = 4096
NOBODY = 65534
SHORT = 0.2

WAYS_TO_SAVE: dict[str, tuple[object, ...]] = {
    "one channel, stopped": ("--direct-io", "off", "--capture", "stopped"),
    "one channel, direct": ("--direct-io", "on"),
    "four channels": ("--channels", 4, "--experimental-multifd", "--direct-io", "off"),
    "four channels, direct": ("--channels", 4, "--experimental-multifd", "--direct-io", "on"),
}


TURNS = [(0, "file", 256 * MIB), (1, "memfd", 256 * MIB), (2, "default", 256 * MIB), (3, "default", 1024 * MIB)]


class TestLoading:
    @pytest.mark.parametrize(("turn", "backend", "size"), unless_thorough([TURNS[1]], TURNS))
    def test_a_linux_guest_goes_on_in_both_and_its_file_is_right(
        self, linux: LinuxGuest, tmp_path: Path, turn: int, backend: Backend, size: int
    ) -> None:
        """Each way to save meets another way to load at every turn: in the four turns of `make soak`, all of them.

        What they make of other memory is shown with the boot sector, and a snapshot's file with Linux, too.
        """
        args, ram = linux.args(size_mib=KNOWN_MIB, tick=0.1), Ram(size, backend)
        ways = list(WAYS_TO_LOAD)
        with QemuProcess(*args, ram=ram) as source:
            path, after = tmp_path / "saved", wait_tick(source)
            for number, (name, options) in enumerate(WAYS_TO_SAVE.items()):
                before = after
                saved = save(source, path, *options)
                assert (saved["channels"], saved["direct_io"]) == (4 if "four" in name else 1, "direct" in name)
                source.take_serial()
                after = wait_tick(source)
                with QemuProcess(*args, ram=ram, incoming=True) as destination:
                    destination.load(f"file:{path}", *WAYS_TO_LOAD[ways[(turn + number) % len(ways)]])
                    path.unlink()
                    first = wait_tick(destination)
                    # The line that was being printed at the save may have lost its beginning to the source.
                    assert before < first <= after + 1
                    assert wait_tick(destination) == first + 1
                    assert destination.complaints() == []
            wait_tick(source)

    def test_what_a_paused_linux_guest_prints_goes_on_to_the_letter(self, linux: LinuxGuest, tmp_path: Path) -> None:
        args, ram, path = linux.args(size_mib=KNOWN_MIB, tick=0.1), Ram(256 * MIB, "default"), tmp_path / "saved"
        with QemuProcess(*args, ram=ram) as source:
            number = wait_tick(source)
            source.stop()
            assert save(source, path)["seconds"]["pause"] == 0
            text = source.take_serial()
        with QemuProcess(*args, ram=ram, incoming=True) as destination:
            destination.load(f"file:{path}")
            assert destination.status() == "paused"
            destination.cont()
            text += destination.wait_serial(f"(?s).*?{TICK}.*?{TICK}")[0]
        ticks = re.findall(f"\n{TICK}", text)
        assert [int(each) for each, _ in ticks] == list(range(number + 1, number + 1 + len(ticks)))
        assert {md5 for _, md5 in ticks} == {linux.md5(KNOWN_MIB)}

    @pytest.mark.parametrize("backend", ["default", "private", "memfd", "file"])
    def test_every_block_of_a_paused_guest_arrives_byte_by_byte(
        self, ticker: list[str], tmp_path: Path, backend: Backend
    ) -> None:
        ram, path = Ram(backend=backend), tmp_path / "saved"
        with QemuProcess(*ticker, "-vga", "std", ram=ram) as source:
            source.wait_serial("C")
            source.stop()
            source.take_events()
            save(source, path, *WAYS_TO_SAVE["four channels"])
            assert source.take_events() == []
            before, letters = contents(source), source.take_serial()
            assert {"vga.vram" in name for name in before} == {True, False}
        assert {name: block.contents() for name, block in read_stored(path).blocks.items()} == before
        for way in ("plain", "direct-io"):
            with QemuProcess(*ticker, "-vga", "std", ram=ram, incoming=True, paused=True) as destination:
                destination.load(f"file:{path}", *WAYS_TO_LOAD[way])
                assert destination.status() == "paused"
                assert differences(before, contents(destination)) == {}
                destination.cont()
                assert in_turn("C" + letters + destination.wait_serial("[A-Z]{3}")[0])

    def test_firmware_tables_are_those_of_the_source_whatever_the_destination_made_of_its_own(
        self, ticker: list[str], tmp_path: Path
    ) -> None:
        table = tmp_path / "table"
        table.write_bytes(bytes(range(1, 256)) * 160)
        more = ("-acpitable", f"sig=TEST,data={table}")
        ours, qemus = tmp_path / "ours", tmp_path / "qemus"
        with QemuProcess(*ticker) as source:
            source.wait_serial("C")
            source.stop()
            save(source, ours)
            before = contents(source)
            migrate(source, qemus)
        small = {name: block for name, block in read_stored(ours).blocks.items() if name != "m"}
        assert all(block.used < 2 * MIB and block.bits.all() for block in small.values())
        tables = "/rom@etc/acpi/tables"
        stale: dict[str, list[int]] = {}
        for path in (ours, qemus):
            with QemuProcess(*ticker, *more, incoming=True, paused=True) as destination:
                assert differences(before, {**before, tables: destination.read_block(tables)})
                destination.load(f"file:{path}")
                stale |= {path.name: differences(before, contents(destination)).get(tables, [])}
                destination.cont()
                assert in_turn(destination.wait_serial("[A-Z]{3}")[0])
        assert stale["ours"] == []
        assert stale["qemus"] == [page for page in stale["qemus"] if not small[tables].pages[page].any()] != []


class TestSource:
    """What is left of a save in the QEMU that was saved."""

    def test_it_goes_on_and_can_be_saved_and_migrated_again(self, ticker: list[str], tmp_path: Path) -> None:
        first, second, third, fourth = (tmp_path / str(number) for number in range(4))

        def state() -> dict[str, Any]:
            queries = ("query-migrate", "query-migrate-capabilities", "query-migrate-parameters", "query-fdsets")
            return {each: guest.qmp(each) for each in queries}

        with QemuProcess(*ticker, ram=Ram(backend="memfd")) as guest:
            guest.wait_serial("C")
            before = state()
            assert (before["query-migrate"], before["query-fdsets"]) == ({}, [])
            threads, descriptors = threading.enumerate(), sorted(os.listdir("/proc/self/fd"))
            guest.take_events()
            save(guest, first)
            assert guest.take_events() == ["STOP", "RESUME"]
            save(guest, second, *WAYS_TO_SAVE["four channels, direct"])
            assert guest.take_events() == ["STOP", "RESUME"]
            assert (threading.enumerate(), sorted(os.listdir("/proc/self/fd"))) == (threads, descriptors)
            save(guest, third, by=run)
            third.unlink()
            assert state() == before
            held = [os.readlink(link) for link in Path(f"/proc/{guest.pid}/fd").iterdir()]
            assert not [name for name in held if "device-state" in name]
            assert in_turn("C" + guest.take_serial() + guest.wait_serial("[A-Z]{3}")[0])
            migrate(guest, third)
            guest.cont()
            migrate(guest, fourth, capabilities=())
            assert guest.status() == "postmigrate"
        for path in (first, second, third, fourth):
            with QemuProcess(*ticker, ram=Ram(backend="memfd"), incoming=True) as destination:
                destination.load(f"file:{path}", () if path == fourth else ("mapped-ram",))
                assert in_turn(destination.wait_serial("[A-Z]{3}")[0])
            path.unlink()

    def test_what_qemu_itself_saved_and_loaded_can_be_saved(self, ticker: list[str], tmp_path: Path) -> None:
        qemus, ours = tmp_path / "qemus", tmp_path / "ours"
        with QemuProcess(*ticker) as guest:
            guest.wait_serial("C")
            migrate(guest, qemus)
            save(guest, ours)
            before = contents(guest)
        for path in (qemus, ours):
            with QemuProcess(*ticker, incoming=True, paused=True) as guest:
                guest.load(f"file:{path}")
                assert differences(before, contents(guest)) == {}
                save(guest, tmp_path / "again", "--overwrite")
                stored = read_stored(tmp_path / "again").blocks
                assert differences(before, {name: block.contents() for name, block in stored.items()}) == {}

    def test_a_guest_that_never_ran_stays_where_it_is(self, ticker: list[str], tmp_path: Path) -> None:
        path = tmp_path / "saved"
        with QemuProcess(*ticker, paused=True) as guest:
            assert guest.status() == "prelaunch"
            save(guest, path)
            before = contents(guest)
        with QemuProcess(*ticker, incoming=True, paused=True) as guest:
            guest.load(f"file:{path}")
            assert differences(before, contents(guest)) == {}
            guest.cont()
            assert guest.wait_serial("[A-Z]{3}")[0] == "ABC"


def footprint(guest: QemuProcess) -> dict[str, int]:
    """Memory that QEMU takes, bytes: resident by kind, and blocks of shared RAM whoever has touched them."""
    status = Path(f"/proc/{guest.pid}/status").read_text()
    found = {name: int(size) << 10 for name, size in re.findall(r"(Rss(?:Anon|Shmem|File)):\s+(\d+) kB", status)}
    with contextlib.suppress(LookupError):
        found["allocated"] = os.stat(guest.ram_path).st_blocks * 512
    return found


class TestFootprint:
    @pytest.mark.parametrize(
        ("touched", "backend"),
        unless_thorough(
            [("much", "private"), ("hardly", "memfd"), ("much", "file")],
            product(["hardly", "much"], ["private", "memfd", "file"]),
        ),
    )
    def test_a_save_costs_the_guest_no_memory(self, tmp_path: Path, touched: str, backend: Backend) -> None:
        image, size = tmp_path / "image", 512 * MIB
        image.write_bytes(boot_image(first=MIB, end=(103 if touched == "much" else 2) * MIB, hz=50))
        with QemuProcess(*boot_from(image), ram=Ram(size, backend)) as guest:
            guest.wait_serial("C")
            before = footprint(guest)
            of_ram = before["RssAnon" if backend == "private" else "allocated"]
            assert (of_ram > 102 * MIB) == (touched == "much")
            assert of_ram < 160 * MIB
            saved = save(guest, tmp_path / "ours", *WAYS_TO_SAVE["four channels"])
            assert saved["bytes"]["allocated"] < before["RssAnon"] + before.get("allocated", 0) + 4 * MIB
            after = footprint(guest)
            assert all(abs(after[name] - before[name]) < 4 * MIB for name in before), (before, after)
            if backend != "private":
                migrate(guest, tmp_path / "qemus")
                assert footprint(guest)["allocated"] == size


REFUSED: dict[str, tuple[tuple[str, ...], str]] = {
    "virtio-mem": (
        (
            *("-m", "64M,maxmem=1G", "-object", "memory-backend-ram,id=more,size=256M"),
            *("-device", "virtio-mem-pci,memdev=more,id=grows"),
        ),
        "device 'grows' is a virtio-mem-pci: virtio-mem has to be set up before RAM is loaded\n",
    ),
    "blocker": (
        (
            *("-m", "64M", "-object", "memory-backend-memfd,id=s,size=1M,share=on"),
            *("-device", "ivshmem-plain,memdev=s"),
        ),
        "QEMU says that this guest cannot be migrated: Migration is disabled when using feature 'peer mode' in device "
        "'ivshmem'\n",
    ),
}


@contextlib.contextmanager
def left_alone(guest: QemuProcess, folder: Path) -> Iterator[None]:
    """Nothing comes into the folder, not even for a moment, and the guest is not stopped."""
    status = guest.status()
    guest.take_events()
    with untouched(folder):
        yield
    assert guest.take_events() == []
    assert guest.status() == status
    assert guest.qmp("query-fdsets") == []
    assert guest.qmp("query-migrate").get("status") is None


@contextlib.contextmanager
def vhost_user_disk(folder: Path) -> Iterator[Path]:
    """A disk behind vhost-user; yields its socket."""
    daemon, image, path, pid = require_tool("qemu-storage-daemon"), folder / "disk", folder / "vu", folder / "pid"
    image.write_bytes(bytes(MIB))
    subprocess.run(
        [
            *(daemon, "--daemonize", "--pidfile", pid),
            *("--blockdev", f"driver=file,node-name=disk,filename={image}"),
            *("--export", f"type=vhost-user-blk,id=e,node-name=disk,addr.type=unix,addr.path={path}"),
        ],
        check=True,
        capture_output=True,
    )
    pidfd = os.pidfd_open(int(pid.read_text()))
    try:
        yield path
    finally:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.close(pidfd)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where nothing must be created."""
    (tmp_path / "folder").mkdir()
    return tmp_path / "folder"


class TestRefused:
    @pytest.mark.parametrize("name", REFUSED)
    def test_a_guest_that_cannot_be_carried_is_refused_by_name(self, qemu_binary: str, folder: Path, name: str) -> None:
        args, message = REFUSED[name]
        with QemuProcess(*args, ram=None) as guest, left_alone(guest, folder):
            refused(call("save", folder / "saved", "--qmp", guest.monitor_path), 4, message, hint="")

    def test_a_disk_behind_vhost_user_is_refused_by_name(self, qemu_binary: str, tmp_path: Path, folder: Path) -> None:
        with vhost_user_disk(tmp_path) as path:
            disk = ("-chardev", f"socket,id=c,path={path}", "-device", "vhost-user-blk-pci,chardev=c,id=disk")
            with QemuProcess(*disk, ram=Ram(backend="memfd")) as guest, left_alone(guest, folder):
                result = call("save", folder / "saved", "--qmp", guest.monitor_path)
                refused(result, 4, "device 'disk' is a vhost-user-blk-pci: a vhost-user back-end holds state", hint="")

    @pytest.mark.parametrize("verb", ["save", "plan"])
    def test_rounds_are_refused_for_nobody_outside_sees_its_dirty_log(
        self, qemu_binary: str, folder: Path, verb: str
    ) -> None:
        with QemuProcess(ram=Ram(32 * MIB)) as guest, left_alone(guest, folder):
            result = call(verb, folder / "saved", "--qmp", guest.monitor_path, "--capture", "rounds")
            refused(result, 2, "this RAM has none\n")

    def test_a_qemu_that_waits_for_a_guest_is_refused(self, qemu_binary: str, folder: Path) -> None:
        with QemuProcess(incoming=True) as guest, left_alone(guest, folder):
            result = call("save", folder / "saved", "--qmp", guest.monitor_path)
            refused(result, 4, "QEMU is in state 'inmigrate': there is no guest to save\n", hint="")

    @pytest.mark.parametrize("pid", ["ours", "none"])
    def test_a_wrong_pid_is_refused(self, qemu_binary: str, folder: Path, pid: str) -> None:
        wrong = os.getpid() if pid == "ours" else int(Path("/proc/sys/kernel/pid_max").read_text())
        with QemuProcess() as guest, left_alone(guest, folder):
            result = call("save", folder / "saved", "--qmp", guest.monitor_path, "--pid", wrong)
            refused(result, 4, f"process {wrong} is not the QEMU behind {str(guest.monitor_path)!r}")
            assert ("there is no such process" in result.err) == (pid == "none")

    def test_the_right_pid_is_taken(self, ticker: list[str], folder: Path) -> None:
        with QemuProcess(*ticker) as guest:
            save(guest, folder / "saved", "--pid", guest.pid)

    def test_a_qemu_whose_socket_we_made_ourselves_is_found(self, ticker: list[str], tmp_path: Path) -> None:
        path = tmp_path / "qmp"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(os.fspath(path))
            listener.listen(1)
            fd = listener.fileno()
            ours = ("-chardev", f"socket,id=ours,fd={fd},server=on,wait=off", "-qmp", "chardev:ours")
            with QemuProcess(*ticker, *ours, descriptors=[fd]) as guest:
                with parallel_fixedram.open_qemu(str(path)) as machine:
                    assert machine.pid == guest.pid
                with pytest.raises(MachineError, match=f"process {os.getpid()} is not the QEMU behind"):
                    parallel_fixedram.open_qemu(str(path), pid=os.getpid())

    def test_a_socket_with_another_client_is_refused(self, qemu_binary: str) -> None:
        with QemuProcess() as guest, QemuMachine(str(guest.monitor_path)) as first:
            guest.take_events()
            with pytest.raises(MachineError, match=r"no greeting within 0\.2 s") as caught:
                QemuMachine(str(guest.monitor_path), timeout=SHORT)
            assert caught.value.hint.startswith("another client is connected to this socket")
            assert guest.take_events() == []
            assert first.pid == guest.pid

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
    @pytest.mark.parametrize("pid", [False, True], ids=["found", "given"])
    def test_without_the_right_to_read_its_memory_it_says_which_is_missing(
        self, qemu_binary: str, tmp_path: Path, pid: bool
    ) -> None:
        with tempfile.TemporaryDirectory() as name, QemuProcess() as guest:
            save(guest, tmp_path / "saved")  # we may; and everything is imported now, which others might not reach
            folder = Path(name)
            folder.chmod(0o777)
            guest.folder.chmod(0o755)
            guest.monitor_path.chmod(0o777)
            given = ("--pid", guest.pid) if pid else ()
            with left_alone(guest, folder):
                result = call_as(NOBODY, "save", folder / "saved", "--qmp", guest.monitor_path, *given)
                hint = "reading guest memory takes the rights of a debugger: run as QEMU's user, or as root"
                refused(result, 4, "we may not examine it\n", hint=hint)

    def test_the_gate_speaks_before_the_socket_is_touched(self, folder: Path) -> None:
        path = folder / "qmp"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(os.fspath(path))
            listener.listen(1)
            listener.setblocking(False)
            with untouched(folder):
                result = call("save", folder / "saved", "--qmp", path, "--channels", 4)
                refused(result, 2, "Fixed-ram migration is incompatible with multifd\n")
            with pytest.raises(BlockingIOError):
                listener.accept()


def call_as(user: int, *argv: object) -> Result:
    """Run the command as somebody else, in a fork of this process: the interpreter may be out of their reach.

    So is what was not imported yet.
    """
    ours, theirs = multiprocessing.Pipe()

    def become_and_call() -> None:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
        result = call(*map(str, argv))
        theirs.send((result.code, result.out, result.err))

    process = multiprocessing.get_context("fork").Process(target=become_and_call)
    process.start()
    theirs.close()
    try:
        return Result(*ours.recv())
    finally:
        process.join()
        ours.close()
