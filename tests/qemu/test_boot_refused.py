"""What cannot be restored or cloned is refused in one line, and no QEMU, no folder and no file of it is left."""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from support.cli import call, refused, run
from support.command import report
from support.qemu import QemuProcess, Ram, require_qemu
from support.qemu_boot import BootFolder, HeldBoot, ends
from support.qemu_commands import Commands
from support.qemu_files import SavedGuest
from support.qemu_tools import machine_type

from parallel_fixedram.boot import incoming

MIB = 1 << 20
VERBS = ("restore", "clone")
SHARED = [("restore",), ("restore", "--shared"), ("clone",)]


def save_unborn(guest: SavedGuest) -> SavedGuest:
    """Write a file of ours of a guest that has not run yet."""
    with QemuProcess(*guest.args, ram=guest.ram, paused=True) as qemu:
        report("save", guest.path, "--qmp", qemu.monitor_path)
    return guest


@pytest.fixture(scope="module")
def with_vga(qemu_files: dict[str, SavedGuest], tmp_path_factory: pytest.TempPathFactory) -> SavedGuest:
    plain = qemu_files["plain"]
    guest = replace(plain, path=tmp_path_factory.mktemp("vga") / "vm.mr", args=(*plain.args, "-device", "VGA"))
    return save_unborn(guest)


@pytest.fixture(scope="module")
def default(qemu_files: dict[str, SavedGuest], tmp_path_factory: pytest.TempPathFactory) -> SavedGuest:
    """Main memory without a backend of its own."""
    path = tmp_path_factory.mktemp("default") / "vm.mr"
    return save_unborn(replace(qemu_files["plain"], path=path, ram=Ram(backend="default")))


def attempt(boot: BootFolder, way: tuple[str, ...], saved: SavedGuest, line: list[str], code: int, said: str) -> None:
    verb, *options = way
    refused(boot.attempt(verb, saved.path, *options, line=line), code, said)


@pytest.mark.parametrize("way", SHARED, ids=" ".join)
def test_another_size_is_refused_by_name_and_size(plain: SavedGuest, boot: BootFolder, way: tuple[str, ...]) -> None:
    """QEMU itself would load it without a word, or say that the size of -m is another, with which nothing is wrong."""
    line = boot.line(*plain.args, ram=Ram(128 * MIB))
    said = "block 'm' has 64.0 MiB (67108864 bytes) in the file, 128 MiB (134217728 bytes) in this QEMU command line\n"
    attempt(boot, way, plain, line, 2, said)


@pytest.mark.parametrize("way", SHARED, ids=" ".join)
@pytest.mark.parametrize("size", ["128", "128M", "size=128M,slots=2,maxmem=1G", "131072K"])
def test_another_size_of_default_ram_is_refused(
    default: SavedGuest, boot: BootFolder, way: tuple[str, ...], size: str
) -> None:
    line = boot.line(*default.args, "-m", size, ram=None)
    attempt(boot, way, default, line, 2, "block 'pc.ram' has 64.0 MiB (67108864 bytes) in the file, 128 MiB (13")


def test_a_size_that_the_command_line_does_not_tell_is_that_of_the_waiting_qemu(
    default: SavedGuest, boot: BootFolder
) -> None:
    """As with a -readconfig file."""
    line = boot.line(*default.args, ram=None)
    said = "block 'pc.ram' has 64.0 MiB (67108864 bytes) in the file, 128 MiB (134217728 bytes) in this QEMU\n"
    attempt(boot, ("restore",), default, line, 2, said)


@pytest.mark.parametrize("way", SHARED, ids=" ".join)
def test_another_name_is_refused(plain: SavedGuest, boot: BootFolder, way: tuple[str, ...]) -> None:
    line = boot.line(*plain.args, ram=Ram(backend="default"))
    said = "block 'm' of the file is not a memory backend of this QEMU command line, which has QEMU's default RAM\n"
    attempt(boot, way, plain, line, 2, said)


@pytest.mark.parametrize("way", SHARED, ids=" ".join)
def test_another_machine_type_is_refused(plain: SavedGuest, boot: BootFolder, way: tuple[str, ...]) -> None:
    line = boot.line(*plain.args, machine="pc")
    q35, pc = machine_type("q35"), machine_type("pc")
    attempt(boot, way, plain, line, 2, f"the file has machine type {q35!r}, this QEMU has {pc!r}\n")


@pytest.mark.parametrize("way", SHARED, ids=" ".join)
def test_a_device_with_ram_that_was_not_there_is_refused(
    plain: SavedGuest, boot: BootFolder, way: tuple[str, ...]
) -> None:
    line = boot.line(*plain.args, "-device", "VGA")
    attempt(
        boot, way, plain, line, 2, "this QEMU has block '0000:00:01.0/vga.vram' of 16.0 MiB (16777216 bytes), which"
    )


@pytest.mark.parametrize("way", SHARED, ids=" ".join)
def test_a_device_with_ram_that_is_missing_is_refused(
    with_vga: SavedGuest, boot: BootFolder, way: tuple[str, ...]
) -> None:
    line = boot.line(*with_vga.args[:-2])
    attempt(
        boot, way, with_vga, line, 2, "the file has block '0000:00:01.0/vga.vram', which this QEMU lacks; it has 'm'"
    )


@pytest.mark.parametrize("way", SHARED, ids=" ".join)
def test_a_device_that_is_missing_is_told_in_the_words_of_a_qemu_that_lives(
    plain: SavedGuest, boot: BootFolder, way: tuple[str, ...]
) -> None:
    """By the log of QEMU 10, where QMP says no more than that an argument was invalid, and by QMP from 11 on.

    Warnings stay in the log, which stays.
    """
    line = boot.line_of(plain, "-machine", "sata=off", "-cpu", "qemu64,enforce=off,+vmx")
    verb, *options = way
    result = call(verb, plain.path, *options, "--run-dir", boot.run_dir, "--", *line)
    said = "section or instance '0000:00:1f.2/ich9_ahci' 0. Make sure that your current VM setup "
    refused(result, 4, said, f"what QEMU printed is kept in '{boot.run_dir}/0/log'")
    assert "load of migration failed" in result.err
    assert "warning" not in result.err
    log = boot.take_logs(result)
    assert "warning: " in log


def test_of_many_only_the_one_that_failed_leaves_its_log(plain: SavedGuest, boot: BootFolder) -> None:
    line = boot.line_of(plain, "-device", "pci-bridge,chassis_nr={n},id=b", clones=3)
    result = call("clone", plain.path, "--count", "3", "--run-dir", boot.run_dir, "--", *line)
    refused(result, 4, "guest 0: QEMU: -device pci-bridge,chassis_nr=0", f"kept in '{boot.run_dir}/0/log'")
    assert "chassis_nr=0" in boot.take_logs(result)


def test_without_a_run_dir_the_log_stays_in_the_folder_that_was_made(
    plain: SavedGuest, boot: BootFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tempfile.TemporaryDirectory() as runtime:  # short enough for a socket
        monkeypatch.setenv("XDG_RUNTIME_DIR", runtime)
        result = call("restore", plain.path, "--", *boot.line_of(plain, "-device", "flux-capacitor"))
        (folder,) = Path(runtime).iterdir()
        refused(result, 4, "QEMU: -device flux-capacitor: ", f"what QEMU printed is kept in '{folder}/0/log'")
        assert [str(path.relative_to(folder)) for path in sorted(folder.rglob("*"))] == ["0", "0/log"]


def test_a_qemu_that_never_finishes_loading_is_given_up(
    plain: SavedGuest, boot: BootFolder, commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands.ignored.add("migrate-incoming")
    monkeypatch.setattr(incoming, "LOAD_SECONDS", 0.1)
    refused(boot.attempt("restore", plain.path, line=boot.line_of(plain)), 4, "no event MIGRATION", "")


def test_a_long_tmpdir_is_told_with_the_option_that_helps(plain: SavedGuest, boot: BootFolder) -> None:
    deep = boot.path / ("d" * 100)
    deep.mkdir()
    result = run(
        "restore", plain.path, "--", *boot.line_of(plain), fresh=True, env={"TMPDIR": str(deep), "XDG_RUNTIME_DIR": ""}
    )
    refused(result, 2, "/0/qmp' is too long for the name of a socket\n", "give --run-dir a folder")
    assert list(deep.iterdir()) == []


@pytest.mark.parametrize("way", SHARED, ids=" ".join)
def test_a_file_that_ends_too_early_starts_nothing(
    with_vga: SavedGuest, boot: BootFolder, tmp_path: Path, way: tuple[str, ...]
) -> None:
    cut = tmp_path / "cut"
    cut.write_bytes(with_vga.path.read_bytes()[: 32 * MIB])
    verb, *options = way
    refused(boot.attempt(verb, cut, *options, line=boot.line()), 3, f"'{cut}' at 0x")


@pytest.mark.parametrize("way", SHARED, ids=" ".join)
def test_a_file_of_ram_alone_holds_no_device_state(boot: BootFolder, tmp_path: Path, way: tuple[str, ...]) -> None:
    saved = tmp_path / "ram.mr"
    report("save", saved, "--guest", "dense,size=1MiB")
    verb, *options = way
    result = boot.attempt(verb, saved, *options, line=boot.line())
    refused(result, 2, "has no device state, so no guest can be started from it\n", "save --qmp takes a whole guest")


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("/nowhere/qemu", "no such file or directory"),
        ("qemu-nowhere", "no such file or directory"),
        ("/", "permission"),
    ],
)
def test_a_program_that_is_none_is_named(
    plain: SavedGuest, boot: BootFolder, verb: str, program: str, said: str
) -> None:
    line = boot.line_of(plain)
    attempt(boot, (verb,), plain, [program, *line[1:]], 2, f"cannot run '{program}': {said}")


@pytest.mark.parametrize("verb", VERBS)
def test_what_qemu_says_to_its_arguments_is_passed_on(plain: SavedGuest, boot: BootFolder, verb: str) -> None:
    line = boot.line_of(plain, "-device", "flux-capacitor")
    said = "QEMU: -device flux-capacitor: 'flux-capacitor' is not a valid device model name\n"
    attempt(boot, (verb,), plain, line, 4, said)


def test_clones_that_want_what_only_one_can_have_are_told_of_their_number(
    plain: SavedGuest, boot: BootFolder, tmp_path: Path
) -> None:
    line = boot.line_of(plain, "-pidfile", str(tmp_path / "pid"), clones=2)
    result = boot.attempt("clone", plain.path, "--count", 2, line=line)
    refused(result, 4, "Cannot lock pid file", "{n} in the command line becomes each clone's number")


@pytest.mark.parametrize("verb", VERBS)
def test_a_program_that_ends_without_a_word_is_an_error(
    plain: SavedGuest, boot: BootFolder, tmp_path: Path, verb: str
) -> None:
    attempt(boot, (verb,), plain, ["true", *boot.line_of(plain)[1:]], 4, "")


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("option", [["-incoming", "defer"], ["-daemonize"], ["-loadvm", "x"], ["--preconfig"]])
def test_options_that_are_ours_are_refused(plain: SavedGuest, boot: BootFolder, verb: str, option: list[str]) -> None:
    name = option[0].replace("--", "-")
    attempt(boot, (verb,), plain, boot.line_of(plain, *option), 2, f"QEMU's option {name} is not allowed here: ")


@pytest.mark.parametrize("verb", VERBS)
def test_a_run_dir_that_exists_is_left_alone(plain: SavedGuest, boot: BootFolder, verb: str) -> None:
    boot.run_dir.mkdir()
    (boot.run_dir / "mine").touch()
    result = run(verb, plain.path, "--run-dir", boot.run_dir, "--", *boot.line_of(plain))
    refused(result, 2, f"'{boot.run_dir}' exists\n")
    assert [path.name for path in boot.run_dir.iterdir()] == ["mine"]
    assert boot.qemus() == []


@pytest.mark.parametrize("verb", VERBS)
def test_a_run_dir_too_deep_for_a_socket_is_refused(plain: SavedGuest, boot: BootFolder, verb: str) -> None:
    deep = boot.path / ("d" * (108 - len(f"{boot.path}//0/qmp")))
    result = run(verb, plain.path, "--run-dir", deep, "--", *boot.line_of(plain))
    refused(result, 2, f"'{deep}/0/qmp' is too long for the name of a socket\n")
    assert not deep.exists()


def test_the_deepest_run_dir_for_a_socket_will_do(plain: SavedGuest, boot: BootFolder) -> None:
    boot.run_dir = boot.path / ("d" * (107 - len(f"{boot.path}//0/qmp")))
    _, (guest,) = boot.start("restore", plain.path, line=boot.line_of(plain))
    assert len(guest.qmp_path) == 107
    assert guest.status() == "running"


@pytest.mark.parametrize("verb", VERBS)
def test_a_run_dir_in_a_folder_that_is_not_there_is_its_callers_to_mend(
    plain: SavedGuest, boot: BootFolder, verb: str
) -> None:
    boot.run_dir = boot.path / "no" / "run"
    said = f"cannot make '{boot.run_dir}': no such file or directory\n"
    attempt(boot, (verb,), plain, boot.line_of(plain), 2, said)


def argv_of(way: tuple[str, ...], saved: SavedGuest, boot: BootFolder, line: list[str]) -> list[str]:
    verb, *options = way
    return [verb, str(saved.path), *options, "--run-dir", str(boot.run_dir), "--", *line]


@pytest.mark.parametrize("way", SHARED, ids=" ".join)
def test_a_qemu_that_is_killed_while_it_loads_is_an_error(
    plain: SavedGuest, boot: BootFolder, way: tuple[str, ...]
) -> None:
    with HeldBoot(*argv_of(way, plain, boot, boot.line_of(plain)), before="migrate-incoming") as running:
        (qemu,) = boot.qemus()
        os.kill(qemu, signal.SIGSTOP)
        running.release()
        os.kill(qemu, signal.SIGKILL)
        refused(running.finish(), 4, "' was killed by SIGKILL and printed nothing\n", "")
    boot.assert_empty()


@pytest.mark.parametrize("signum", [signal.SIGABRT, signal.SIGSEGV])
def test_a_qemu_that_dies_when_it_has_loaded_is_told_with_its_signal(
    plain: SavedGuest, boot: BootFolder, signum: signal.Signals
) -> None:
    with HeldBoot(*argv_of(("restore",), plain, boot, boot.line_of(plain)), before="query-status") as running:
        (qemu,) = boot.qemus()
        os.kill(qemu, signum)
        running.release()
        refused(running.finish(), 4, f"' was killed by {signum.name} and printed nothing\n", "")
    boot.assert_empty()


@pytest.mark.parametrize("killed", [0, 1])
def test_if_one_clone_is_killed_all_are_gone(plain: SavedGuest, boot: BootFolder, killed: int) -> None:
    line = boot.line_of(plain, clones=2)
    argv = argv_of(("clone", "--count", "2"), plain, boot, line)
    with HeldBoot(*argv, before="migrate-incoming") as running:
        victim = int((boot.run_dir / str(killed) / "pid").read_text())
        with ends(*boot.qemus()):
            os.kill(victim, signal.SIGKILL)
            running.release()
            refused(running.finish(), 4, f"error: guest {killed}: ", "")
    boot.assert_empty()


@pytest.mark.parametrize("verb", VERBS)
def test_a_qemu_behind_a_wrapper_is_gone_too(plain: SavedGuest, boot: BootFolder, tmp_path: Path, verb: str) -> None:
    """One that waits for QEMU instead of becoming it."""
    wrapper = tmp_path / "wrapper"
    wrapper.write_text(f'#!/bin/sh\n{require_qemu()} "$@"\nexit $?\n')
    wrapper.chmod(0o755)
    line = boot.line(*plain.args, machine="pc", program=wrapper)
    result = call(verb, plain.path, "--run-dir", boot.run_dir, "--", *line)
    refused(result, 2, "the file has machine type")
    for pid in boot.qemus():  # nobody but the wrapper could wait until QEMU has ended
        with contextlib.suppress(ProcessLookupError), ends(pid):
            pass
    boot.assert_empty()
