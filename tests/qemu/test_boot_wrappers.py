"""What stands in front of QEMU - timeout, setsid, a shell - and a QEMU that gives up its rights, are no matter."""

from __future__ import annotations

import contextlib
import os
import pwd
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.cli import done, refused, run
from support.qemu import require_qemu, require_tool
from support.qemu_boot import BootFolder, HeldBoot, children, ends
from support.qemu_files import SavedGuest

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
WRAPPERS: dict[str, list[str]] = {
    "timeout": ["timeout", "600"],
    "setsid": ["setsid"],
    "nice": ["nice", "-n", "1"],
    "env": ["env", "NAME=value"],
    "strace": ["strace", "-f", "-e", "trace=none"],
    "shell": ["sh", "-c", '"$0" "$@"; exit $?'],
    "setsid, elsewhere": ["setsid", "sh", "-c", 'exec "$0" "$@" >/dev/null 2>&1'],
}


@pytest.fixture
def boot(tmp_path: Path) -> Iterator[BootFolder]:
    with BootFolder(tmp_path / "boot") as folder:
        yield folder
        for pid in processes_of(folder):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def wrapped(wrapper: str, line: list[str]) -> list[str]:
    program, *arguments = WRAPPERS[wrapper]
    return [require_tool(program), *arguments, *line]


@pytest.mark.parametrize(
    ("verb", "wrapper"), [*(("restore", wrapper) for wrapper in WRAPPERS), ("clone", "setsid"), ("clone", "shell")]
)
def test_the_process_that_is_reported_is_qemus_own(ours: SavedGuest, boot: BootFolder, verb: str, wrapper: str) -> None:
    line = wrapped(wrapper, boot.line_of(ours))
    started = done(run(verb, ours.path, "--run-dir", boot.run_dir, "--json", "--", *line)).json
    (reported,) = started["guests"]
    guest = boot.guest(0, reported["pid"])
    assert os.path.basename(os.readlink(f"/proc/{guest.pid}/exe")) == os.path.basename(require_qemu())
    assert (boot.run_dir / "0" / "pid").read_text() == f"{guest.pid}\n"
    assert guest.wait_serial("[A-Z]{10}")[0] in LETTERS + LETTERS
    with ends(*boot.qemus()):  # the wrapper ends with it
        guest.terminate()


def processes_of(boot: BootFolder) -> list[int]:
    """Everybody who names this folder in his command line, wrappers and QEMUs, wherever they print to; not us."""
    found = []
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
            if f"path={boot.path}".encode() in command and not os.path.samefile(f"/proc/{pid}/exe", sys.executable):
                found.append(int(pid))
    return found


@pytest.mark.parametrize("wrapper", ["strace", "shell", "setsid, elsewhere"])
def test_a_qemu_that_is_refused_is_gone_with_its_wrapper(ours: SavedGuest, boot: BootFolder, wrapper: str) -> None:
    line = wrapped(wrapper, boot.line(*ours.args, machine="pc"))
    refused(boot.attempt("restore", ours.path, line=line), 2, "the file has machine type")
    assert processes_of(boot) == []


@pytest.mark.parametrize(
    ("before", "signum", "code"),
    [
        ("qmp_capabilities", signal.SIGTERM, 143),
        ("qmp_capabilities", signal.SIGKILL, -9),
        ("query-status", signal.SIGKILL, -9),
    ],
)
def test_a_signal_ends_a_qemu_in_a_session_of_its_own(
    ours: SavedGuest, boot: BootFolder, before: str, signum: signal.Signals, code: int
) -> None:
    line = wrapped("setsid, elsewhere", boot.line_of(ours))
    argv = ("clone", str(ours.path), "--run-dir", str(boot.run_dir), "--", *line)
    with HeldBoot(*argv, before=before) as running:
        (qemu,) = processes_of(boot)
        with ends(qemu, *children(running.pid)):
            running.send(signum)
        assert running.finish().code == code
    boot.assert_empty()


def test_a_wrapper_that_ends_without_qemu_is_told_with_its_code(ours: SavedGuest, boot: BootFolder) -> None:
    line = [require_tool("sh"), "-c", "exit 7", *boot.line_of(ours)]
    result = boot.attempt("restore", ours.path, line=line)
    refused(result, 4, f"'{line[0]}' exited with code 7 and printed nothing\n", "")


MULTIFD = ("--channels", "2", "--experimental-multifd")
WAYS: dict[str, tuple[str, ...]] = {
    "restore": ("restore",),
    "multifd": ("restore", *MULTIFD),
    "shared": ("restore", "--shared"),
    "clone": ("clone", "--count", "2"),
}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give up rights")
@pytest.mark.parametrize(
    ("whose", "way"), [*(("ours", way) for way in WAYS), ("QEMU's", "restore"), ("QEMU's", "clone")]
)
def test_a_qemu_that_gives_up_its_rights_loads_what_only_root_may_open(
    qemu_files: dict[str, SavedGuest], ours: SavedGuest, boot: BootFolder, tmp_path: Path, way: str, whose: str
) -> None:
    saved = ours if whose == "ours" else qemu_files["plain"]
    saved.path.chmod(0o600)
    verb, *options = WAYS[way]
    line = boot.line_of(saved, "-run-with", "user=nobody", clones=2 if way == "clone" else 0)
    _, guests = boot.start(verb, saved.path, *options, line=line)
    for guest in guests:
        uids = next(text for text in Path(f"/proc/{guest.pid}/status").read_text().splitlines() if "Uid:" in text)
        assert uids.split()[1] == str(pwd.getpwnam("nobody").pw_uid)
        assert guest.wait_serial("[A-Z]{10}")[0] in LETTERS + LETTERS
        assert guest.qmp("query-fdsets") == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give up rights")
def test_direct_io_takes_a_descriptor_of_its_own(ours: SavedGuest, boot: BootFolder) -> None:
    """A cold file is loaded bypassing the page cache."""
    with ours.path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    line = boot.line_of(ours, "-run-with", "user=nobody")
    started, (guest,) = boot.start("restore", ours.path, *MULTIFD, line=line)
    if not started["direct_io"]:
        pytest.skip("no direct I/O here")
    assert guest.wait_serial("[A-Z]{10}")[0] in LETTERS + LETTERS
