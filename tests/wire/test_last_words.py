"""What of a QEMU's log is worth a place in a message."""

import os
import signal
from pathlib import Path

import pytest

from parallel_fixedram.boot.last_words import MAX_CHARACTERS, how_it_ended, last_words
from parallel_fixedram.boot.launch import Launch
from parallel_fixedram.core.errors import MachineError

LOGS: dict[str, tuple[str, str, str]] = {
    "nothing": ("", "", ""),
    "an error": ("qemu-system-x86_64: no such device\n", "no such device", "no such device"),
    "warnings and a note": (
        "qemu-system-x86_64: warning: old CPU\nqemu-system-x86_64: info: x\nqemu-system-x86_64: bad\n",
        "bad",
        "bad",
    ),
    "warnings only": ("qemu-system-x86_64: warning: old CPU\n", "", ""),
    "a warning about an option": (
        "qemu-kvm: -mon chardev=x,mode=control: warning: '-mon' is deprecated\nqemu-kvm: bad\n",
        "bad",
        "bad",
    ),
    "only a warning about an option": ("qemu-kvm: -cpu max,x=on: warning: no x\n", "", ""),
    "a warning about a line of a file": (
        "qemu-kvm:vm.cfg:3: warning: old\nqemu-kvm:vm.cfg:4: bad\n",
        *2 * ["vm.cfg:4: bad"],
    ),
    "an error about an option": ("qemu-kvm: -device x: no such device\n", *2 * ["-device x: no such device"]),
    "a warning of a command": ("warning: zero-blocks is deprecated\nqemu-kvm: bad\n", "bad", "bad"),
    "a warning of a library": ("(qemu-kvm:77): GLib-WARNING **: 12:00:00.0: odd\n", "", ""),
    "an error that speaks of a warning": ("qemu-kvm: cannot log: warning: x\n", *2 * ["cannot log: warning: x"]),
    "with times": ("2026-01-02T03:04:05.678901Z qemu-system-i386: bad\n", "bad", "bad"),
    "two errors": ("qemu-kvm: first\nqemu-kvm: second", "first; second", "first; second"),
    "a wrapper's noise": ("[pid 7] +++ exited\nqemu-system-arm: bad\n+++ exited\n", "bad", "bad"),
    "the guest's console": ("login: \nsecret\n", "", "login:; secret"),
    "a shell": ("sh: qemu: not found\n", "", "sh: qemu: not found"),
    "by the name it was run as": ("my-vm: bad\n", "bad", "bad"),
    "control characters": ("my-vm: \x1b[31mbad\x00\n", "?[31mbad?", "?[31mbad?"),
    "no text": ("my-vm: \ufffd\n", "\ufffd", "\ufffd"),
    "many": ("".join(f"my-vm: {n}\n" for n in range(100)), "95; 96; 97; 98; 99", "95; 96; 97; 98; 99"),
}


@pytest.mark.parametrize(("text", "living", "ended"), LOGS.values(), ids=LOGS)
def test_a_log_is_told_by_its_last_lines(tmp_path: Path, text: str, living: str, ended: str) -> None:
    log = tmp_path / "log"
    log.write_text(text)
    assert last_words(str(log), "/usr/bin/my-vm", ended=False) == living
    assert last_words(str(log), "/usr/bin/my-vm", ended=True) == ended


def test_a_long_line_is_cut_and_a_huge_log_is_not_read_as_a_whole(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("my-vm: first\n" + "x" * (1 << 20) + "\nmy-vm: " + "y" * 9999 + "z\n")
    found = last_words(str(log), "my-vm", ended=True)
    assert found == "..." + "y" * (MAX_CHARACTERS - 1) + "z"
    assert last_words(str(tmp_path / "none"), "my-vm", ended=True) == ""


@pytest.mark.parametrize(
    ("script", "how"),
    [
        ("exit 0", "exited with code 0"),
        ("exit 7", "exited with code 7"),
        ("kill -ABRT $$", "was killed by SIGABRT"),
        ("kill -KILL $$", "was killed by SIGKILL"),
    ],
)
def test_how_a_process_ended_is_told_and_it_is_still_there_to_be_reaped(script: str, how: str) -> None:
    pid = os.posix_spawn("/bin/sh", ["sh", "-c", script], {})
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert how_it_ended(pid) == how
    os.waitpid(pid, 0)
    assert how_it_ended(pid) == "has ended"


def test_a_process_that_lives_has_not_ended() -> None:
    pid = os.posix_spawn("/bin/sh", ["sh", "-c", "kill -STOP $$"], {})
    assert how_it_ended(pid) == ""
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo qemu-x: bad >&2; exit 1", "QEMU: bad"),
        ("echo qemu-x: bad >&2; kill -SEGV $$", "'sh' was killed by SIGSEGV; QEMU: bad"),
        ("exit 3", "no answer; 'sh' exited with code 3 and printed nothing"),
    ],
)
def test_an_error_is_explained_by_how_it_ended_and_its_log_stays(tmp_path: Path, script: str, message: str) -> None:
    with Launch(["sh", "-c", script], str(tmp_path / "run")) as launch:
        assert launch.has_ended()
        told = launch.explained(MachineError("no answer", hint="try again"))
    assert told.message == message
    spoke = "bad" in message
    assert told.hint == (f"what QEMU printed is kept in '{tmp_path}/run/log'" if spoke else "")
    assert [path.name for path in tmp_path.rglob("*")] == (["run", "log"] if spoke else [])
