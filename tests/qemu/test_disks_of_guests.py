"""Guests that are restored and cloned with disks of the instant at which they were saved: overlays of their own."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from support.checked_disks import MACHINE, CheckedDisks, checking_image
from support.cli import call, done, refused
from support.command import report
from support.qemu import QemuProcess, require_tool
from support.qemu_boot import MACHINE_ERROR, BootFolder, Guest, HeldBoot, children, ends, sha256
from support.qemu_files import SavedGuest
from support.qemu_saved import in_turn

from parallel_fixedram.boot.disks import on_overlays
from parallel_fixedram.boot.incoming import IncomingStream
from parallel_fixedram.boot.plan import Boot
from parallel_fixedram.core.disks import Disk
from parallel_fixedram.core.errors import RequestError
from parallel_fixedram.host.files.image_facts import image_now

LETTERS = r"[A-Z!]"


@dataclass(frozen=True)
class Saved:
    """A guest that runs on, its file, and its images at that instant."""

    source: QemuProcess
    disks: CheckedDisks
    path: Path
    sums: dict[str, str]

    def line(self, boot: BootFolder, *more: str, clones: int = 0) -> list[str]:
        return boot.line(*self.disks.args(), *more, machine=MACHINE, clones=clones)


@pytest.fixture(scope="module")
def saved(qemu_binary: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Saved]:
    folder = tmp_path_factory.mktemp("disks")
    disks, path = CheckedDisks(folder).make(), folder / "vm.mr"
    with QemuProcess(*disks.args(), machine=MACHINE) as source:
        source.wait_serial("C")
        told = report("save", path, "--qmp", source.monitor_path, "--disks", "overlay")
        assert {each["device"] for each in told["disks"]} == disks.images.keys()
        sums = disks.sums()
        yield Saved(source, disks, path, sums)
        source.take_serial()
        assert in_turn(letters(source))
    assert disks.sums() == sums
    shutil.rmtree(folder)


def letters(guest: Guest | QemuProcess, count: int = 3) -> str:
    """The next letters that it prints: ! is not one of them, and in_turn does not know it."""
    return "".join(guest.wait_serial(LETTERS)[0] for _ in range(count))


def overlays(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.qcow2"))


def numbers(paths: list[Path]) -> list[int]:
    """What the guest has written last to each of its disks, in the order in which it does."""
    found = []
    for path in sorted(
        (each for each in paths if "pflash" not in each.name), key=lambda each: "first" not in each.name
    ):
        raw = path.with_suffix(".raw")
        command = ["convert", "-U", "-f", "qcow2", "-O", "raw", os.fspath(path), os.fspath(raw)]
        subprocess.run([require_tool("qemu-img"), *command], check=True)
        found.append(int.from_bytes(raw.read_bytes()[512:516], "little"))
        raw.unlink()
    return found


@pytest.mark.parametrize("verb", ["restore", "clone"])
def test_each_guest_finds_the_disks_that_its_memory_knows_and_writes_to_its_own(
    saved: Saved, tmp_path: Path, verb: str
) -> None:
    assert in_turn(letters(saved.source))  # it goes on, with overlays of its own
    starts, written = set(), set()
    for again in range(2):
        with BootFolder(tmp_path / str(again)) as boot:
            options = ("--count", 2) if verb == "clone" else ()
            booted = boot.start(verb, saved.path, *options, line=saved.line(boot, clones=2 if options else 0))
            for number, guest in enumerate(booted.guests):
                found = letters(guest, 3 + 4 * number)
                assert in_turn(found)
                starts.add(found[0])
                guest.qmp("stop")
                paths = [Path(each) for each in booted.report["guests"][number]["disks"]]
                assert paths == overlays(boot.run_dir / str(number))
                assert {stat.S_IMODE(path.stat().st_mode) for path in paths} == {0o600}
                first, *others = numbers(paths)
                assert set(others) <= {first, first - 1}  # each round writes one after the other
                written.add(first)
    assert len(starts) == 1
    assert min(written) > 3
    assert len(written) > 1 or verb == "restore"
    assert saved.disks.sums() == saved.sums


def test_without_overlays_a_guest_gets_the_disks_of_the_command_line(
    saved: Saved, boot: BootFolder, tmp_path: Path
) -> None:
    others = CheckedDisks(tmp_path).make()
    line = boot.line(*others.args(), machine=MACHINE)
    _, (guest,) = boot.start("restore", saved.path, "--disks", "none", line=line)
    guest.wait_serial("!")  # it looks
    assert overlays(boot.run_dir) == []
    assert "named by no drive" not in call("restore", saved.path, "--print", "--disks", "none", "--", *line).err


def test_a_file_is_verified_with_overlays_that_are_gone_afterwards(saved: Saved, boot: BootFolder) -> None:
    run = ("--run-dir", boot.run_dir)
    verified = report("verify", saved.path, "--quick", "--load", *run, "--", *saved.line(boot))
    assert verified["ok"]
    boot.assert_empty()
    others = [each.replace("vars.fd", "no.fd") for each in saved.line(boot)]
    refused(boot.attempt("verify", saved.path, "--load", line=others), 2, "no drive of the QEMU command line has image")
    assert saved.disks.sums() == saved.sums


def test_overlays_in_a_folder_stay_when_their_guests_have_ended(saved: Saved, boot: BootFolder) -> None:
    folder = boot.path / "own"
    folder.mkdir()
    booted = boot.start("restore", saved.path, "--disk-folder", folder, line=saved.line(boot))
    assert in_turn(letters(booted.guests[0]))
    paths = [Path(each) for each in booted.report["guests"][0]["disks"]]
    assert sorted(paths) == sorted(folder.iterdir())
    assert not any("removed when it has ended" in each for each in booted.report["changes"])
    done(call("guests", "stop", boot.run_dir))
    assert not boot.run_dir.exists()
    assert sorted(paths) == sorted(folder.iterdir())
    assert numbers(paths)[0] > 3


def test_a_guest_with_overlays_is_saved_again_and_found_by_the_first_command_line(
    saved: Saved, boot: BootFolder, tmp_path: Path
) -> None:
    _, (first,) = boot.start("restore", saved.path, "--disk-folder", tmp_path, line=saved.line(boot))
    letters(first)
    report("save", tmp_path / "second.mr", "--qmp", first.qmp_path, "--disks", "overlay")
    first.terminate()
    with BootFolder(tmp_path / "again") as again:
        _, guests = again.start("clone", tmp_path / "second.mr", "--count", 2, line=saved.line(again, clones=2))
        found = [letters(each) for each in guests]
        assert in_turn(found[0])
        assert in_turn(found[1])
        assert found[0][0] == found[1][0]
    assert saved.disks.sums() == saved.sums


def test_what_is_printed_makes_the_overlays_and_starts_the_guest_on_them(saved: Saved, boot: BootFolder) -> None:
    line = ["--", *saved.line(boot)]
    plan = report("restore", saved.path, "--print", "--run-dir", boot.run_dir, *line)
    assert not boot.run_dir.exists()
    for command in plan["prepare"]:
        subprocess.run(command, check=True)
    made = overlays(boot.run_dir)
    assert len(made) == len(saved.disks.images)
    (command,) = plan["commands"]
    assert all(os.fspath(path) in " ".join(command) for path in made)
    assert not any(f"filename={saved.disks.folder}" in each for each in command)
    text = done(call("restore", saved.path, "--print", "--run-dir", boot.run_dir, *line)).out.splitlines()
    assert [shlex.split(each) for each in text[: len(plan["prepare"]) + 1]] == [*plan["prepare"], command]
    machine = ("-accel", "qtest", "-S", "-monitor", "stdio")
    qemu = [*(each for each in command if each not in ("-incoming", "defer")), *machine]
    assert "disk.qcow2" in subprocess.run(qemu, input="info block\nq\n", capture_output=True, text=True).stdout
    shutil.rmtree(boot.run_dir)


def test_an_image_that_was_touched_is_refused_and_nothing_is_left(saved: Saved, boot: BootFolder) -> None:
    image = saved.disks.folder / "top.qcow2"
    before = image.stat()
    os.utime(image, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    try:
        for verb in (("restore",), ("clone",), ("verify", "--load"), ("clone", "--print")):
            result = boot.attempt(*verb, saved.path, line=saved.line(boot))
            refused(result, 1, f"image '{image}' of disk 'ide0-hd0' was written to since the guest was saved: last at ")
    finally:
        os.utime(image, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_an_image_that_is_written_while_guests_load_keeps_them_from_running(saved: Saved, boot: BootFolder) -> None:
    image = saved.disks.folder / "base.img"
    before = image.stat()
    argv = ("clone", str(saved.path), "--run-dir", str(boot.run_dir), "--", *saved.line(boot))
    with HeldBoot(*argv, before="migrate-incoming") as running:
        os.utime(image, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
        try:
            running.release()
            refused(running.finish(), 1, f"image '{image}' of disk 'ide0-hd0' was written to since the guest was saved")
        finally:
            os.utime(image, ns=(before.st_atime_ns, before.st_mtime_ns))
    boot.assert_empty()


def test_a_block_device_is_a_disk_like_any_other(boot: BootFolder, tmp_path: Path) -> None:
    with loop_device(tmp_path / "backing") as device:
        drive = ("-drive", f"file={device},format=raw,if=virtio")
        options = ("--disks", "overlay", "--disk-folder", tmp_path)
        with QemuProcess(*drive) as source:
            source.wait_serial("C")
            report("save", tmp_path / "vm.mr", "--qmp", source.monitor_path, *options)
            before = sha256(tmp_path / "backing")
            _, guests = boot.start("clone", tmp_path / "vm.mr", "--count", 2, line=boot.line(*drive, clones=2))
            assert all(in_turn(letters(each)) for each in (source, *guests))
            for each in guests:
                each.terminate()
        subprocess.run(["sync", device], check=True)
        assert sha256(tmp_path / "backing") == before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give up rights")
def test_overlays_belong_to_the_user_that_qemu_becomes(boot: BootFolder) -> None:
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        folder = Path(name)
        (folder / "disk.img").write_bytes(checking_image())
        drive = ("-drive", f"file={folder / 'disk.img'},format=raw,if=virtio")
        with QemuProcess(*drive) as source:
            source.wait_serial("C")
            report("save", folder / "vm.mr", "--qmp", source.monitor_path, "--disks", "overlay")
        line = boot.line(*drive, "-run-with", "user=nobody", clones=2)
        result = boot.attempt("clone", folder / "vm.mr", line=line)  # the run folder is ours alone
        refused(result, MACHINE_ERROR, "Permission denied")
        assert "choose a --disk-folder that QEMU's user may enter" in result.err
        booted = boot.start("clone", folder / "vm.mr", "--count", 2, "--disk-folder", folder, line=line)
        for number, guest in enumerate(booted.guests):
            assert in_turn(letters(guest))
            (path,) = booted.report["guests"][number]["disks"]
            assert (Path(path).owner(), stat.S_IMODE(os.stat(path).st_mode)) == ("nobody", 0o600)


@contextlib.contextmanager
def loop_device(backing: Path) -> Iterator[str]:
    """A block device with the guest on it."""
    backing.write_bytes(checking_image())
    made = subprocess.run(["losetup", "--find", "--show", backing], capture_output=True, text=True)
    if made.returncode:  # containers are often given none
        pytest.skip(f"no loop devices here: {made.stderr.strip()}")
    try:
        yield made.stdout.strip()
    finally:
        subprocess.run(["losetup", "--detach", made.stdout.strip()], check=True)


def test_an_image_that_somebody_else_has_open_to_write_is_refused_in_qemus_words(
    boot: BootFolder, tmp_path: Path
) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(1 << 20))
    drive = ("-drive", f"file={image},format=raw,if=virtio")
    with QemuProcess(*drive, paused=True) as source:
        report("save", tmp_path / "vm.mr", "--qmp", source.monitor_path, "--disks", "overlay")
    with QemuProcess(*drive, paused=True):
        for verb in ("restore", "clone"):
            result = boot.attempt(verb, tmp_path / "vm.mr", line=boot.line(*drive))
            refused(result, 4, 'Failed to get shared "write" lock')
            assert (
                f"another process writes to an image that the file records ('{image}'): end that process" in result.err
            )


@pytest.mark.parametrize("verb", ["restore", "clone"])
def test_a_start_that_fails_leaves_no_overlay(saved: Saved, boot: BootFolder, verb: str) -> None:
    folder = boot.path / "own"
    folder.mkdir()
    line = saved.line(boot, "-device", "no-such-device")
    refused(boot.attempt(verb, saved.path, "--disk-folder", folder, line=line), 4, "no-such-device")
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_a_command_that_is_ended_leaves_no_overlay(
    saved: Saved, boot: BootFolder, signum: signal.Signals, code: int
) -> None:
    folder = boot.path / "own"
    folder.mkdir()
    options = ("--count", "2", "--disk-folder", str(folder), "--run-dir", str(boot.run_dir))
    line = saved.line(boot, clones=2)
    with HeldBoot("clone", str(saved.path), *options, "--", *line, before="migrate-incoming") as running:
        assert len(overlays(folder)) == 2 * len(saved.disks.images)
        with ends(*boot.qemus(), *children(running.pid)):
            running.send(signum)
        assert running.finish().code == code
    boot.assert_empty()
    assert list(folder.iterdir()) == []


def test_options_that_cannot_be_followed_are_refused(saved: Saved, ours: SavedGuest, boot: BootFolder) -> None:
    without, line = boot.line_of(ours), saved.line(boot)
    for verb in (("restore",), ("clone",), ("verify", "--load"), ("restore", "--print")):
        for options in (("--disks", "overlay"), ("--disk-folder", boot.path)):
            message = f"'{ours.path}' records no disks to make overlays on"
            refused(boot.attempt(*verb, ours.path, *options, line=without), 2, message)
        both = ("--disks", "none", "--disk-folder", boot.path)
        refused(boot.attempt(*verb, saved.path, *both, line=line), 2, "with --disks none there are none")
        nowhere = ("--disk-folder", "nowhere")
        refused(boot.attempt(*verb, saved.path, *nowhere, line=line), 2, "there is no folder 'nowhere' for overlays")
    for option in (("--disks", "none"), ("--disk-folder", "/tmp")):
        refused(call("restore", ours.path, "--ram", "m=ram", *option), 2, f"{option[0]} needs a QEMU command line")
        refused(call("verify", ours.path, *option), 2, f"{option[0]} needs --load")


def test_what_is_behind_an_image_is_what_its_header_says(tmp_path: Path) -> None:
    tool, top = require_tool("qemu-img"), tmp_path / "top.qcow2"
    for name in ("base", "other"):
        (tmp_path / name).write_bytes(bytes(1 << 20))
    subprocess.run([tool, "create", "-q", "-f", "qcow2", "-F", "raw", "-b", "base", top], check=True)
    images = (image_now(os.fspath(top), "qcow2"), image_now(os.fspath(tmp_path / "base"), "raw"))
    other = image_now(os.fspath(tmp_path / "other"), "raw")
    disk = Disk(device="one", node="q", size=1 << 20, images=images)
    boot = Boot(commands=[["qemu", "-hda", os.fspath(top)]], source=IncomingStream(path="/vm.mr"))
    assert on_overlays(boot, (disk,), "/run").disks.recorded == (disk,)
    for behind in ((other,), (), (images[1], other), (replace(images[1], format="qcow2"),)):
        with pytest.raises(
            RequestError, match=r"has the backing file '.*/base' \(raw\) by its header, but had .* when the guest was"
        ):
            on_overlays(boot, (replace(disk, images=(images[0], *behind)),), "/run")
