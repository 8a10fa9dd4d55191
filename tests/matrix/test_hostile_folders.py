"""Hostile folders: what others have put there, called so, or change while it is read.

Every command ends with what it is for, or in one line; what is not its own stays as it was.
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from support import faults
from support.cli import call, done, part_of, refused
from support.fault_matrix import Count
from support.faults import Call, Run
from support.parsers import DISKS, SMALL
from support.pictures import content
from support.streamwriter import PAGE, our_file

import parallel_fixedram
from parallel_fixedram.boot.recorded_disks import refuse_written
from parallel_fixedram.core.disks import pack_disks
from parallel_fixedram.core.errors import FixedRamError
from parallel_fixedram.image.image import Image

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="makes devices, and files of others: root is needed"),
]

ROW = "hostile folders"
NOBODY = 65534
PICTURE = "AB-0" * 40
RAM = content(PICTURE)


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, in memory, with RAM and a good file of it."""
    with TemporaryDirectory(prefix="hostile-", dir="/dev/shm") as path:
        monkeypatch.chdir(path)
        Path("ram").write_bytes(RAM)
        done(call("save", "good.mr", "--ram", "ram=ram"))
        yield Path(path)


def everything(folder: Path) -> dict[str, tuple[int, int, int, int]]:
    """All that is in a folder, as far as it could be changed."""
    found = (path.lstat() for path in sorted(folder.rglob("*")))
    names = map(str, sorted(folder.rglob("*")))
    return {
        name: (each.st_ino, each.st_mode, each.st_size, each.st_mtime_ns)
        for name, each in zip(names, found, strict=True)
    }


def bind(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


def sparse(path: Path) -> None:
    path.touch()
    os.truncate(path, 1 << 62)


def below_a_file(path: Path) -> None:
    path.parent.rmdir()
    path.parent.touch()


def below_a_loop(path: Path) -> None:
    path.parent.rmdir()
    path.parent.symlink_to(path.parent.name)


NO_FILES: dict[str, Callable[[Path], object]] = {
    "nothing": lambda path: None,
    "a dangling link": lambda path: path.symlink_to("nowhere"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a link to a device": lambda path: path.symlink_to("/dev/zero"),
    "a pipe": os.mkfifo,
    "a socket": bind,
    "a device": lambda path: os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 5)),
    "a folder": lambda path: path.mkdir(),
    "an empty file": lambda path: path.touch(),
    "a hole of 4 EiB": sparse,
    "something below a file": below_a_file,
    "something below a link that leads to itself": below_a_loop,
}
READERS: dict[str, list[str]] = {
    "verify": ["verify", "in/X"],
    "inspect": ["inspect", "in/X"],
    "diff": ["diff", "good.mr", "in/X"],
    "restore": ["restore", "in/X", "--ram", "ram=new"],
    "clone": ["clone", "in/X", "--print", "--", "qemu-system-x86_64", "-m", "640K"],
    "save of it": ["save", "new", "--ram", "ram=in/X"],
    "plan": ["plan", "new", "--ram", "ram=in/X"],
    "disks commit": ["disks", "commit", "--qmp", "in/X"],
}


@pytest.mark.parametrize("kind", NO_FILES)
def test_what_is_no_file_is_refused_by_all_who_read(folder: Path, kind: str, count: Count) -> None:
    (folder / "in").mkdir()
    NO_FILES[kind](folder / "in" / "X")
    before = everything(folder)
    for reader, argv in READERS.items():
        if (kind, reader) == ("a hole of 4 EiB", "plan"):
            continue  # a guest of that size is one
        found = call(*argv)
        assert found.code in (2, 3, 4, 5), (reader, found)
        refused(found, found.code, "")
        assert "unexpected" not in found.err, (reader, found)
        assert everything(folder) == before, reader
    count(ROW, len(READERS))


def planted_link(path: Path) -> None:
    """Leads to a file that is not to be written."""
    path.with_name("victim").write_bytes(b"precious")
    path.symlink_to("victim")


TAKEN: dict[str, Callable[[Path], object]] = {
    **{
        kind: NO_FILES[kind]
        for kind in ("a dangling link", "a link to itself", "a pipe", "a socket", "a device", "a folder")
    },
    "a link to a file": planted_link,
    "a file that anybody may read": lambda path: (path.write_bytes(b"old"), path.chmod(0o644)),
    "a file of somebody else's": lambda path: (path.write_bytes(b"old"), os.chown(path, NOBODY, NOBODY)),
    "one name of a file with two": lambda path: (
        path.with_name("victim").write_bytes(b"precious"),
        os.link(path.with_name("victim"), path),
    ),
}
REPLACED = [kind for kind in TAKEN if "file" in kind or kind == "a dangling link"]
"""What --overwrite takes the name from."""


@pytest.mark.parametrize("how", ["", "--overwrite"])
@pytest.mark.parametrize("where", ["name", "name meanwhile"])
@pytest.mark.parametrize("kind", TAKEN)
def test_what_stands_under_the_name_stays_or_is_replaced_and_is_never_written(
    folder: Path, kind: str, where: str, how: str, count: Count
) -> None:
    """The second name is the one that a file has until it is complete."""
    path = folder / "in" / "X"
    path.parent.mkdir()
    TAKEN[kind](path if where == "name" else part_of(path))
    before = everything(path.parent)
    found = call("save", path, "--ram", "ram=ram", *filter(None, [how]))
    if found.code:
        refused(found, found.code, "")
        assert everything(path.parent) == before
    else:
        check_saved(path)
        assert where != "name" or how
    if where == "name":
        assert (found.code == 0) == bool(how and kind in REPLACED), found
    if (victim := path.with_name("victim")).exists():
        assert victim.read_bytes() == b"precious"
    count(ROW, 1)


def check_saved(path: Path) -> None:
    """A file of ours, and nobody else's."""
    status = path.lstat()
    assert (stat.S_ISREG(status.st_mode), stat.S_IMODE(status.st_mode), status.st_uid, status.st_nlink) == (
        *(True, 0o600, os.geteuid(), 1),
    )
    assert not part_of(path).exists()
    assert parallel_fixedram.verify(f"file:{path}", ram={"ram": "ram"}).ok


FOLDERS: dict[str, Callable[[Path], object]] = {
    "one that hands on its group": lambda path: (os.chown(path, -1, NOBODY), path.chmod(0o2777)),
    "one where everybody may write": lambda path: path.chmod(0o1777),
    "one of somebody else's": lambda path: (os.chown(path, NOBODY, NOBODY), path.chmod(0o1777)),
    "one that a link leads to": lambda path: (path.rmdir(), path.with_name("real").mkdir(), path.symlink_to("real")),
}


@pytest.mark.parametrize("umask", [0, 0o777])
@pytest.mark.parametrize("kind", FOLDERS)
def test_a_file_is_private_in_whichever_folder_and_with_whichever_umask(
    folder: Path, kind: str, umask: int, count: Count
) -> None:
    path = folder / "in" / "X"
    path.parent.mkdir()
    FOLDERS[kind](path.parent)
    old = os.umask(umask)
    try:
        done(call("save", path, "--ram", "ram=ram"))
        done(call("restore", path, "--ram", f"ram={path.with_name('new')}"))
    finally:
        os.umask(old)
    check_saved(path)
    assert stat.S_IMODE(path.with_name("new").stat().st_mode) == 0o600
    assert sorted(os.listdir(path.parent)) == ["X", "new"]
    count(ROW, 2)


NAMES = {
    "a newline": b"a\nparallel-fixedram: error: b",
    "control characters": b"\x1b[2J\x07\r\x7f",
    "a dash in front": b"-rf",
    "an option": b"--overwrite",
    "no UTF-8": b"\xff\xfe\xc3",
    "formats": b"%s%n{0}{n}$(id)`id`",
    "spaces and quotes": b" ' \" \\ ",
    "a URI": b"file:x,offset=1",
    "dots": b"...",
    "signs that turn a line round": "‮evil⁦".encode(),
    "as long as can be": b"n" * 248,
    "too long": b"n" * 255,
}


@pytest.mark.parametrize("what", NAMES)
def test_names_may_be_anything_and_what_is_printed_is_one_line(folder: Path, what: str, count: Count) -> None:
    name = os.fsdecode(os.fsencode(folder) + b"/" + NAMES[what])
    saved = call("save", name, "--ram", "ram=ram")
    if what == "too long":
        refused(saved, 2, "")
    else:
        done(saved)
        for argv in (["verify"], ["inspect"], ["restore", "--ram", "ram=new"], ["verify", "--json"]):
            found = done(call(argv[0], name, *argv[1:]))
            assert found.out.replace(name, "").replace("\n", "").isprintable(), found.out
        refused(call("save", name, "--ram", "ram=ram"), 2, "")
        assert Path("new").read_bytes() == RAM
    count(ROW, 6)


DESTINATIONS: dict[str, Callable[[Path], object]] = {
    **{kind: NO_FILES[kind] for kind in ("a link to itself", "a link to a device", "a pipe", "a socket", "a device")},
    **{kind: NO_FILES[kind] for kind in ("a folder", "an empty file", "a hole of 4 EiB")},
    "a dangling link": NO_FILES["a dangling link"],
    "the file itself": lambda path: os.link("good.mr", path),
}


@pytest.mark.parametrize("kind", DESTINATIONS)
def test_ram_is_restored_into_a_file_of_its_size_or_a_new_one_and_into_nothing_else(
    folder: Path, kind: str, count: Count
) -> None:
    DESTINATIONS[kind](folder / "new")
    before = everything(folder)
    found = call("restore", "good.mr", "--ram", "ram=new")
    refused(found, found.code, "")
    assert everything(folder) == before
    count(ROW, 1)


RECORDED = ["a dangling link", "a pipe", "a socket", "a device", "a folder", "an empty file", "a hole of 4 EiB"]


@pytest.mark.parametrize("kind", RECORDED)
def test_an_image_that_a_file_records_is_looked_at_and_not_waited_for(folder: Path, kind: str, count: Count) -> None:
    """Who made the file may have recorded anything."""
    NO_FILES[kind](folder / "X")
    disks = pack_disks(DISKS).replace(b"/nowhere/a.qcow2", os.fsencode(folder / "X"))
    Path("recorded.mr").write_bytes(our_file(SMALL, alignment=PAGE, disks=disks).data)
    with Image("recorded.mr") as image, pytest.raises(FixedRamError):
        refuse_written(image.disks)
    count(ROW, 1)


@pytest.mark.parametrize("kind", ["a link to a file", "a pipe", "a socket", "a folder", "one name of a file with two"])
def test_clean_removes_nothing_that_only_has_the_name_of_what_is_left(folder: Path, kind: str, count: Count) -> None:
    for name in (".X.part", ".good.mr.part", "disk.img.fixedram-20260101-000000a.qcow2"):
        (folder / name).unlink(missing_ok=True)
        (folder / "victim").unlink(missing_ok=True)
        {**NO_FILES, **TAKEN}[kind](folder / name)
    found = call("clean", folder, "--remove")
    assert (found.code in (0, 1), "Traceback" in found.err) == (True, False)
    assert not (folder / "victim").exists() or (folder / "victim").read_bytes() == b"precious"
    assert Path("good.mr").exists()
    count(ROW, 3)


# --- files that change while they are read

REASON = faults.why_not()
READS = ("pread64", "preadv", "preadv2")


def truncate(path: str) -> None:
    os.truncate(path, os.stat(path).st_size // 2)


def empty(path: str) -> None:
    os.truncate(path, 0)


def swap(path: str) -> None:
    Path(path).with_name("other").write_bytes(b"another file")
    os.rename(Path(path).with_name("other"), path)


def scribble(path: str) -> None:
    with open(path, "r+b", 0) as file:
        for at in range(0, os.stat(path).st_size, PAGE):
            os.pwrite(file.fileno(), b"\xff" * 64, at)


@pytest.mark.skipif(bool(REASON), reason=REASON)
@pytest.mark.parametrize("change", [truncate, empty, swap, scribble])
@pytest.mark.parametrize("verb", ["verify", "restore", "diff"])
def test_a_file_that_changes_at_any_read_is_read_as_it_was_or_refused(
    folder: Path, verb: str, change: Callable[[str], None], count: Count
) -> None:
    good = Path("good.mr").read_bytes()
    Path("same.mr").write_bytes(good)
    actions: dict[str, Callable[[], object]] = {
        "verify": lambda: parallel_fixedram.verify("good.mr", channels=1).ok,
        "restore": lambda: parallel_fixedram.restore("good.mr", {"ram": "new"}, check_digests=True).verified,
        "diff": lambda: parallel_fixedram.diff("good.mr", "same.mr", channels=1).equal,
    }
    reads = 0
    while True:
        Path("good.mr").unlink()
        Path("good.mr").write_bytes(good)
        Path("new").unlink(missing_ok=True)
        changing = ChangingAt(reads, change)
        run = faults.run(actions[verb], under=str(folder), decide=changing.decide)
        assert (run.hung, run.orphans, run.stderr) == (False, (), ""), (reads, run)
        assert run.error is None or isinstance(run.error, FixedRamError), (reads, run.error)
        if change is swap:
            assert run.value is True, (reads, run.error)
        if verb == "restore":
            assert Path("new").exists() == (run.error is None)
            assert run.error or Path("new").read_bytes() == RAM, reads
        if not changing.changed:
            break
        reads += 1
    assert reads > 3
    count(ROW, reads)


class ChangingAt:
    """Changes a file right before one of the reads from it.

    Args:
        read: which one, counted from 0.
        change: gets the path.
    """

    def __init__(self, read: int, change: Callable[[str], None]) -> None:
        self._left = read
        self._change = change
        self.changed = False

    def decide(self, call: Call, run: Run) -> None:
        if call.name in READS and call.path.endswith("/good.mr") and not self.changed:
            self._left -= 1
            if self._left < 0:
                self.changed = True
                self._change(call.path)
