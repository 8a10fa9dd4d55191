"""``doctor --qmp``: what it says of a QEMU is what a save then meets, and the QEMU is left alone."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from support.cli import call, done, tmpfs, untouched
from support.disks import on_disk
from support.puppet import Puppet
from support.qemu import QemuProcess, Ram
from support.seccomp import install, only
from support.sources import huge_file
from support.watched import require_userfaultfd

import parallel_fixedram
from parallel_fixedram.core.reports.doctor import DoctorReport, Finding, Verdict
from parallel_fixedram.host.injection import ptrace
from parallel_fixedram.machines.qemu.machine import QemuMachine
from parallel_fixedram.machines.qemu.trials import Setting
from parallel_fixedram.machines.qemu.watch import VARIABLE

MIB = 1 << 20
NOBODY = 65534
SYS_PTRACE, EPERM = 101, 0x50001
IVSHMEM = ("-object", "memory-backend-memfd,id=s,size=1M,share=on", "-device", "ivshmem-plain,memdev=s,id=iv")


@contextlib.contextmanager
def left_alone(guest: QemuProcess) -> Iterator[None]:
    """Nothing is done to the guest, and nothing of ours stays in its QEMU."""
    status = guest.status()
    guest.take_events()
    yield
    assert guest.take_events() == []
    assert guest.status() == status
    assert guest.qmp("query-fdsets") == []
    assert guest.qmp("query-migrate").get("status") is None


def report(guest: QemuProcess, folder: Path, *more: object) -> DoctorReport:
    with left_alone(guest), untouched(folder):
        result = call("doctor", folder, "--qmp", guest.monitor_path, "--json", *map(str, more))
    assert result.err == ""
    found = parallel_fixedram.from_json(DoctorReport, json.loads(result.out))
    assert result.code == (0 if found.ok else 1)
    return found


def findings(found: DoctorReport) -> dict[str, Finding]:
    return {each.what: each for section in found.sections for each in section.findings}


def refused(found: DoctorReport) -> set[str]:
    return {name for name, each in findings(found).items() if each.verdict is Verdict.REFUSED}


def saved(guest: QemuProcess, folder: Path, *more: str) -> dict[str, Any]:
    """How a save decided."""
    choice: dict[str, Any] = done(
        call("save", folder / "saved", "--qmp", guest.monitor_path, "--json", "--overwrite", *more)
    ).json["choice"]
    return choice


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "folder").mkdir()
    return tmp_path / "folder"


def test_of_a_guest_that_runs_and_of_one_that_stands_still_it_says_what_a_save_takes(
    ticker: list[str], folder: Path
) -> None:
    require_userfaultfd()
    with QemuProcess(*ticker, ram=Ram(backend="memfd")) as guest:
        guest.wait_serial("C")
        found = report(guest, folder)
        assert (found.ok, found.capture, found.qmp) == (True, "snapshot", str(guest.monitor_path))
        assert findings(found)["monitor"].detail.startswith(f"{guest.monitor_path}, QEMU ")
        assert findings(found)["process"].detail == f"number {guest.pid}"
        assert findings(found)["machine"].detail.endswith(", x86_64")
        assert findings(found)["m"].detail.startswith("64.0 MiB, shared, /memfd:")
        assert findings(found)["pc.bios"].detail.endswith(" KiB, private")
        assert saved(guest, folder)["capture"] == "snapshot"
        guest.stop()
        found = report(guest, folder)
        assert (found.ok, found.capture) == (True, "stopped")
        assert findings(found)["auto"].detail == "chooses stopped: the guest stands still"
        assert saved(guest, folder)["capture"] == "stopped"


class TestNoSnapshot:
    """A guest of which ``auto`` takes none, and why: doctor and save say the same."""

    def compared(self, guest: QemuProcess, folder: Path, why: str) -> DoctorReport:
        guest.wait_serial("C")
        found = report(guest, folder)
        assert (found.ok, found.capture) == (True, "compare")
        snapshot = findings(found)["snapshot"]
        assert snapshot.verdict is Verdict.ABSENT
        assert why in snapshot.detail
        choice = saved(guest, folder)
        assert choice["capture"] == "compare"
        assert choice["why"][0] == findings(found)["auto"].detail.removeprefix("chooses ")
        return found

    def test_of_memory_that_others_share(self, ticker: list[str], folder: Path) -> None:
        with QemuProcess(*ticker, *IVSHMEM[:3], f"{IVSHMEM[3]},master=on") as guest:
            found = self.compared(guest, folder, "device 'iv' is an ivshmem-plain: whoever shares its memory")
            assert findings(found)["iv"].verdict is Verdict.ABSENT

    def test_of_a_balloon_on_huge_pages(self, ticker: list[str], folder: Path) -> None:
        memory = "memory-backend-memfd,id=m,size=64M,hugetlb=on,hugetlbsize=2M,share=on"
        args = ("-m", "64M", "-machine", "memory-backend=m", "-object", memory, "-device", "virtio-balloon-pci,id=b")
        with huge_file(0, pool=32), QemuProcess(*ticker, *args, ram=None) as guest:
            found = self.compared(guest, folder, "device 'b' is a virtio-balloon-pci, which discards parts")
            assert findings(found)["m"].detail.startswith("64.0 MiB, shared, huge pages")

    def test_of_memory_that_is_a_file_on_a_disk(self, ticker: list[str], tmp_path: Path, folder: Path) -> None:
        with on_disk(tmp_path) as disk:
            memory = f"memory-backend-file,id=m,size=64M,mem-path={disk / 'ram'},share=on"
            args = ("-m", "64M", "-object", memory, "-machine", "memory-backend=m")
            with QemuProcess(*ticker, *args, ram=None) as guest:
                found = self.compared(guest, folder, "block 'm' is a file on a disk: this memory cannot be")
        assert "memory-backend-memfd" in findings(found)["snapshot"].how

    def test_where_it_is_forbidden(self, ticker: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(VARIABLE, "never")
        with QemuProcess(*ticker) as guest:
            self.compared(guest, folder, f"{VARIABLE}=never forbids")

    def test_where_nobody_has_tried_it(self, ticker: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Setting, "unproven", "nobody has tried it with this one")
        with QemuProcess(*ticker) as guest:
            found = self.compared(guest, folder, "nobody has tried it with this one")
        assert findings(found)["snapshot"].how.startswith("try-capture ")

    def test_where_it_is_traced_by_somebody_else(self, ticker: list[str], folder: Path) -> None:
        with QemuProcess(*ticker) as guest, tracer(guest.pid):
            self.compared(guest, folder, f"process {guest.pid} is traced by")

    def test_where_a_sandbox_of_ours_forbids_ptrace(self, ticker: list[str], folder: Path) -> None:
        """Which is seen only when it is tried: a save begins a snapshot, and then compares."""
        require_userfaultfd()

        def both(path: str) -> tuple[DoctorReport, str, Sequence[str]]:
            found = parallel_fixedram.doctor(str(folder), qmp=path)
            report = parallel_fixedram.save(lambda: parallel_fixedram.open_qemu(path), str(folder / "saved"))
            return found, report.choice.capture, report.notes

        with QemuProcess(*ticker) as guest:
            guest.wait_serial("C")
            report(guest, folder)  # everything is imported
            with Puppet(both, first=lambda: install(only(SYS_PTRACE, EPERM))) as process:
                found, capture, notes = process.call(os.fspath(guest.monitor_path))
        assert (found.ok, found.capture, capture) == (True, "compare", "compare")
        assert "a process of ours ask for a userfaultfd: operation not permitted" in findings(found)["snapshot"].detail
        assert "ask for a userfaultfd: operation not permitted: the save began again" in notes[0]


@contextlib.contextmanager
def tracer(pid: int) -> Iterator[None]:
    with Puppet(ptrace.seize) as process:
        process.call(pid)
        yield


class TestRefused:
    """All that is in the way is named, and the first of it is what a save says."""

    def refused(self, guest: QemuProcess, folder: Path, *names: str) -> DoctorReport:
        found = report(guest, folder)
        assert (found.ok, found.capture) == (False, "")
        assert refused(found) == {*names, "auto"}
        with left_alone(guest), untouched(folder):
            result = call("save", folder / "saved", "--qmp", guest.monitor_path)
        assert result.code in (4, 5)
        said = findings(found)["auto"].detail
        assert said in result.err
        assert said in {findings(found)[name].detail for name in names}
        return found

    def test_two_devices_at_once(self, qemu_binary: str, folder: Path) -> None:
        args = (
            *("-m", "64M,maxmem=1G", "-object", "memory-backend-ram,id=more,size=256M"),
            *("-device", "virtio-mem-pci,memdev=more,id=grows", "-device", "virtio-rng-pci", *IVSHMEM),
        )
        with QemuProcess(*args, ram=None) as guest:
            found = self.refused(guest, folder, "grows", "migration")
        assert findings(found)["grows"].detail.startswith("device 'grows' is a virtio-mem-pci: ")
        assert "ivshmem" in findings(found)["migration"].detail
        assert findings(found)["others"].detail == "1 device that can be saved"

    def test_a_qemu_that_waits_for_a_guest(self, qemu_binary: str, folder: Path) -> None:
        with QemuProcess(incoming=True) as guest:
            self.refused(guest, folder, "state")

    def test_read_only_memory(self, qemu_binary: str, tmp_path: Path, folder: Path) -> None:
        with open(tmp_path / "rom", "wb") as file:
            file.truncate(64 * MIB)
        memory = f"memory-backend-file,id=ro,size=64M,mem-path={tmp_path / 'rom'},share=off,readonly=on,rom=on"
        args = ("-m", "64M,slots=1,maxmem=1G", "-object", memory, "-device", "pc-dimm,memdev=ro")
        with QemuProcess(*args, ram=None) as guest:
            found = self.refused(guest, folder, "kind")
        assert "readonly=on,share=off,rom=off" in findings(found)["kind"].how

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
    def test_a_process_that_may_not_be_looked_at(self, qemu_binary: str, folder: Path) -> None:
        with QemuProcess() as guest:
            report(guest, folder)  # everything is imported: the interpreter may be out of reach
            guest.folder.chmod(0o755)
            guest.monitor_path.chmod(0o777)

            def become_nobody() -> None:
                os.chdir("/tmp")
                os.setgroups([])
                os.setresgid(NOBODY, NOBODY, NOBODY)
                os.setresuid(NOBODY, NOBODY, NOBODY)

            def as_nobody(path: str) -> DoctorReport:
                return parallel_fixedram.doctor(qmp=path)

            with Puppet(as_nobody, first=become_nobody) as process, left_alone(guest):
                found = process.call(os.fspath(guest.monitor_path))
        assert refused(found) == {"process", "auto"}
        assert all(section.findings for section in found.sections)
        assert findings(found)["process"].how.endswith("run as QEMU's user, or as root")

    def test_a_guest_whose_memory_has_no_room_in_the_folder(self, ticker: list[str], tmp_path: Path) -> None:
        with tmpfs(tmp_path / "small", "size=8M") as small, QemuProcess(*ticker) as guest:
            guest.wait_serial("C")
            found = report(guest, small)
            assert refused(found) == {"space"}
            assert ", for 64.5 MiB of RAM, of which " in findings(found)["space"].detail
            result = call("save", small / "saved", "--qmp", guest.monitor_path)
            assert result.code == 5
            assert "no space left on device" in result.err

    def test_a_monitor_that_another_client_has(self, qemu_binary: str, folder: Path) -> None:
        with QemuProcess() as guest, QemuMachine(str(guest.monitor_path)):
            result = call("doctor", folder, "--qmp", guest.monitor_path, "--qmp-timeout", "0.2", "--json")
        assert result.code == 1
        found = parallel_fixedram.from_json(DoctorReport, json.loads(result.out))
        assert refused(found) == {"monitor", "auto"}
        assert findings(found)["monitor"].how.startswith("another client is connected to this socket")

    def test_another_process_than_the_one_that_is_named(self, qemu_binary: str, folder: Path) -> None:
        with QemuProcess() as guest:
            found = report(guest, folder, "--pid", os.getpid())
        assert refused(found) == {"process", "auto"}


class TestDisks:
    def test_a_guest_that_writes_to_them_is_saved_by_whoever_says_what_becomes_of_them(
        self, ticker: list[str], tmp_path: Path, folder: Path
    ) -> None:
        image = tmp_path / "disk"
        image.write_bytes(bytes(MIB))
        disk = ("-drive", f"file={image},format=raw,if=none,id=d", "-device", "virtio-blk-pci,drive=d,id=vd")
        with QemuProcess(*ticker, *disk) as guest:
            guest.wait_serial("C")
            found = report(guest, folder)
            assert refused(found) == {"disks"}
            assert findings(found)["vd"].detail == f"1.0 MiB, {image}: it can be put on an overlay"
            assert "--disks overlay" in findings(found)["disks"].how
            result = call("save", folder / "saved", "--qmp", guest.monitor_path)
            assert result.code == 2
            assert findings(found)["disks"].detail in result.err
            for mode in ("none", "overlay"):
                found = report(guest, folder, "--disks", mode)
                assert found.ok
                assert saved(guest, folder, "--disks", mode)["capture"] == found.capture

    def test_one_that_can_have_no_overlay_is_refused_if_it_shall_have_one(
        self, ticker: list[str], tmp_path: Path, folder: Path
    ) -> None:
        image = tmp_path / "disk"
        image.write_bytes(bytes(MIB))
        part = f"driver=raw,node-name=d,size=4096,file.driver=file,file.filename={image}"
        with QemuProcess(*ticker, "-blockdev", part, "-device", "virtio-blk-pci,drive=d,id=vd") as guest:
            guest.wait_serial("C")
            found = report(guest, folder, "--disks", "overlay")
            assert refused(found) == {"vd"}
            result = call("save", folder / "saved", "--qmp", guest.monitor_path, "--disks", "overlay")
            assert result.code == 4
            why = "cannot be put on an overlay: it is only a part of its file"
            assert why in result.err
            assert why in findings(found)["vd"].detail
            found = report(guest, folder, "--disks", "none")
            assert findings(found)["vd"].verdict is Verdict.ABSENT
            assert found.ok
