"""A folder in which nothing can be written: every verb that writes says so in one line, and changes nothing.

It is mounted read-only, or its modes forbid it, to us as to anybody.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from support.cli import Result, call, done, lose_override, refused, tree
from support.disks_of_guests import ManyDisks, make_images, numbers, read, write
from support.fault_matrix import Count
from support.faults import Forked
from support.leftovers import nothing_left, of_qemu
from support.pictures import content
from support.qemu import QemuProcess, Ram, boot_from, require_qemu

from parallel_fixedram.cli.main import VERBS
from parallel_fixedram.experiments.boot_sector import boot_image

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="mounts a folder read-only: root is needed"),
]

ROW = "folders that are read-only"
RAM = content("AB-0" * 40)
QEMU = Ram(8 << 20)
LEFT = ".dead.mr.part"
READERS = ("plan", "guests", "verify", "inspect", "diff", "caps")
"""Verbs that write nothing wherever they look."""


@contextlib.contextmanager
def mounted_so(folder: Path) -> Iterator[Callable[[], object]]:
    subprocess.run(["mount", "--bind", folder, folder], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True)
    try:
        yield lambda: None
    finally:
        subprocess.run(["umount", folder], check=True)


@contextlib.contextmanager
def by_its_modes(folder: Path) -> Iterator[Callable[[], object]]:
    paths = [folder, *folder.rglob("*")]
    modes = [path.stat().st_mode for path in paths]
    for path, mode in zip(paths, modes, strict=True):
        path.chmod(mode & 0o555)
    try:
        yield lose_override
    finally:
        for path, mode in zip(paths, modes, strict=True):
            path.chmod(mode)


KINDS = {"mounted so": mounted_so, "by its modes": by_its_modes}
WRITERS: dict[str, list[object]] = {
    "save": ["save", "in/new", "--ram", "ram=ram"],
    "save over a file": ["save", "in/good.mr", "--ram", "ram=ram", "--overwrite"],
    "restore": ["restore", "good.mr", "--ram", "ram=in/new"],
    "restore into a file": ["restore", "good.mr", "--ram", "ram=in/ram"],
    "demo": ["demo", "--size", "16MiB", "--folder", "in"],
    "bench": ["bench", "run", "smoke", "--folder", "in", "--output", "results.json"],
    "bench, its results": ["bench", "run", "smoke", "--output", "in/results.json"],
    "clean": ["clean", "in", "--remove"],
    "doctor": ["doctor", "in"],
}
SAID = {
    "clean": (1, "cannot look at it: "),
    "doctor": (1, "refused new files"),
}
"""Exit code, and what it says on stdout, of verbs for which this is a finding and no error."""


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, in memory: RAM, a good file of it, and ``in`` with all that could be written there."""
    with TemporaryDirectory(prefix="read-only-", dir="/dev/shm") as path:
        monkeypatch.chdir(path)
        Path("in").mkdir()
        for name in ("ram", "in/ram"):
            Path(name).write_bytes(RAM)
        for name in ("good.mr", "in/good.mr"):
            done(call("save", name, "--ram", "ram=ram"))
        Path("in", LEFT).touch(mode=0o600)
        yield Path(path)


def run(prepare: Callable[[], object], *argv: object) -> Result:
    """The command as a process, nobody of whom is left."""
    with Forked(*argv, prepare=prepare) as command:
        result = command.finish()
        assert command.left() == []
    print(argv, result)
    return result


def check(result: Result, what: str) -> None:
    """It says in one line that it cannot write there, and why."""
    code, said = SAID.get(what, (5, ""))
    assert result.code == code, result
    assert "Traceback" not in result.err, result
    assert "unexpected" not in result.err, result
    errors = [line for line in result.err.splitlines() if "error: " in line]
    assert len(errors) == (code == 5), result
    told = errors[0] if errors else result.out
    assert said in told, result
    assert "in" in told.replace("/", "'").split("'"), result
    assert "read-only file system" in told or "permission denied" in told, result


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("what", WRITERS)
def test_a_verb_that_writes_says_that_it_cannot(folder: Path, what: str, kind: str, count: Count) -> None:
    with KINDS[kind](folder / "in") as prepare:
        before = tree(folder / "in")
        result = run(prepare, *WRITERS[what])
        assert tree(folder / "in") == before
    check(result, what)
    count(ROW, 1)


def test_no_verb_is_missing() -> None:
    tried = {str(argv[0]) for argv in (*WRITERS.values(), *OF_QEMUS.values(), *OF_GUESTS.values())}
    assert tried | {"disks"} | {*READERS} == {*VERBS}


# --- with a QEMU

LINE = ["qemu-system-x86_64", "-nodefaults", "-display", "none", "-accel", "tcg", "-machine", "q35,memory-backend=m"]
LINE += ["-m", f"{QEMU.size}B", "-object", f"memory-backend-ram,id=m,size={QEMU.size}"]
OF_QEMUS: dict[str, list[object]] = {
    "a clone stream is added": ["clone", "in/qemu.mr", "--add-clone-stream", "--run-dir", "runs", "--", *LINE],
    "a run folder of clones": ["clone", "qemu.mr", "--add-clone-stream", "--run-dir", "in/runs", "--", *LINE],
    "a run folder": ["restore", "qemu.mr", "--run-dir", "in/runs", "--", *LINE],
}
"""Verbs that start QEMUs, from a file that QEMU wrote."""
OF_GUESTS: dict[str, list[object]] = {
    "overlays": ["save", "new", "--disks", "overlay"],
    "overlays elsewhere": ["save", "new", "--disks", "overlay", "--disk-folder", "in"],
    "a trial": ["try-capture", "--folder", "in", "--count", "1"],
}
"""Verbs for a guest whose images are in the folder."""


@pytest.fixture(scope="module")
def qemus_file(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    require_qemu()
    path = tmp_path_factory.mktemp("qemus") / "file"
    with QemuProcess(ram=QEMU, paused=True) as guest:
        guest.migrate(f"file:{path}")
    return path.read_bytes()


@pytest.mark.qemu
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("what", OF_QEMUS)
def test_a_verb_that_starts_qemus_says_that_it_cannot(
    folder: Path, qemus_file: bytes, what: str, kind: str, count: Count
) -> None:
    for name in ("qemu.mr", "in/qemu.mr"):
        Path(name).write_bytes(qemus_file)
    Path("runs").mkdir()
    with KINDS[kind](folder / "in") as prepare:
        before = tree(folder / "in")
        result = run(prepare, *OF_QEMUS[what])
        assert tree(folder / "in") == before
    check(result, what)
    count(ROW, 1)


@pytest.fixture(scope="module")
def ticker(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    require_qemu()
    path = tmp_path_factory.mktemp("ticker") / "image"
    path.write_bytes(boot_image(end=8 << 20))
    return boot_from(path)


@contextlib.contextmanager
def guest_with_disks(ticker: list[str], disks: ManyDisks) -> Iterator[QemuProcess]:
    with QemuProcess(*ticker, *disks.one(), ram=Ram(32 << 20), machine="pc") as guest:
        guest.wait_serial("C")
        yield guest


def runs_on(guest: QemuProcess) -> None:
    assert guest.status() == "running"
    guest.take_serial()
    guest.wait_serial("[A-Z]")


@pytest.mark.qemu
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("what", OF_GUESTS)
def test_a_verb_for_a_guest_says_that_it_cannot_and_the_guest_runs_on(
    folder: Path, ticker: list[str], what: str, kind: str, count: Count
) -> None:
    disks = make_images(folder / "in")
    with guest_with_disks(ticker, disks) as guest, KINDS[kind](folder / "in") as prepare:
        verb, *more = OF_GUESTS[what]
        before = sorted(os.listdir("in")), sorted(os.listdir())
        with nothing_left(lambda: of_qemu(guest)):
            result = run(
                prepare, verb, *more[: what != "a trial"], "--qmp", guest.monitor_path, *more[what != "a trial" :]
            )
        assert (sorted(os.listdir("in")), sorted(os.listdir())) == before
        runs_on(guest)
    check(result, what)
    count(ROW, 1)


@pytest.mark.qemu
def test_disks_stay_on_their_overlays_where_the_images_below_cannot_be_written(
    folder: Path, ticker: list[str], tmp_path: Path, count: Count
) -> None:
    """QEMU opens an image anew to write to it."""
    disks = make_images(folder / "in")
    with guest_with_disks(ticker, disks) as guest:
        done(call("save", "new", "--qmp", guest.monitor_path, "--disks", "overlay"))
        write(guest, 7)
        with mounted_so(folder / "in") as prepare:
            refused(run(prepare, *commit(guest)), 4, "disk.img': Read-only file system\n", "")
            runs_on(guest)
        done(call(*commit(guest)))
        runs_on(guest)
        assert numbers(read(disks.raw, "raw", tmp_path)) == {7}
        assert list(Path("in").glob("*fixedram-*")) == []
    count(ROW, 1)


@pytest.mark.qemu
def test_disks_are_merged_and_an_overlay_that_cannot_be_removed_is_named(
    folder: Path, ticker: list[str], tmp_path: Path, count: Count
) -> None:
    disks = make_images(folder / "in")
    with guest_with_disks(ticker, disks) as guest:
        done(call("save", "new", "--qmp", guest.monitor_path, "--disks", "overlay"))
        write(guest, 7)
        (overlay,) = Path("in").absolute().glob("*fixedram-*")
        with by_its_modes(folder / "in") as prepare:
            said = f"{str(overlay)!r} is no longer used, but cannot be removed: permission denied\n"
            refused(run(prepare, *commit(guest)), 5, said, "")
            runs_on(guest)
        assert guest.qmp("query-jobs") == []
        assert numbers(read(disks.raw, "raw", tmp_path)) == {7}
        assert overlay.name in call("clean", "in").out
    count(ROW, 1)


PLACED: dict[str, Callable[[Path], object]] = {
    "nothing": lambda path: None,
    "a folder": lambda path: path.mkdir(),
    "a pipe": os.mkfifo,
    "a dangling link": lambda path: path.symlink_to("nowhere"),
    "a link to a file": lambda path: path.symlink_to(Path("ram").absolute()),
    "another file": lambda path: path.write_bytes(b"precious"),
}


@pytest.mark.qemu
@pytest.mark.parametrize("kind", PLACED)
def test_nothing_is_merged_or_removed_where_others_have_put_something_in_the_place_of_an_overlay(
    folder: Path, ticker: list[str], tmp_path: Path, kind: str, count: Count
) -> None:
    """QEMU has the overlay itself open, whatever is called so by now."""
    disks = make_images(folder / "in")
    with guest_with_disks(ticker, disks) as guest:
        done(call("save", "new", "--qmp", guest.monitor_path, "--disks", "overlay"))
        write(guest, 7)
        (overlay,) = Path("in").absolute().glob("*fixedram-*")
        overlay.rename("moved")
        PLACED[kind](overlay)
        before = tree(folder)
        refused(
            call(*commit(guest)), 4, f"{str(overlay)!r} does not lead from here to the file that QEMU has open\n", ""
        )
        assert tree(folder) == before
        runs_on(guest)
        assert guest.qmp("query-jobs") == []
        assert numbers(read(Path("moved"), "qcow2", tmp_path)) == {7}
    count(ROW, 1)


def commit(guest: QemuProcess) -> list[str]:
    return ["disks", "commit", "--qmp", str(guest.monitor_path)]
