"""``save --disks overlay``: images of all disks stay what they are at the instant of the file; the guest runs on."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.cli import call, done, refused
from support.command import report
from support.disks_of_guests import SIZE, ManyDisks, many_disks, numbers, qemu_img, read, write
from support.examples import unless_thorough
from support.qemu import QemuProcess, Ram
from support.qemu_commands import Commands

from parallel_fixedram import Observer, commit_disks, open_qemu
from parallel_fixedram.core.errors import HostError
from parallel_fixedram.core.save_options import CaptureMode
from parallel_fixedram.engine.capture.ways import WAYS
from parallel_fixedram.image.image import open_image

MIB = 1 << 20
OVERLAY = "fixedram-"


@pytest.fixture
def guest(disks: ManyDisks, ticker: list[str]) -> Iterator[QemuProcess]:
    with many_disks(disks, ticker) as guest:
        yield guest


def argv(guest: QemuProcess, path: Path, *more: object) -> list[object]:
    return ["save", path, "--qmp", guest.monitor_path, "--disks", "overlay", *more]


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def overlays(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if OVERLAY in path.name)


def nodes(guest: QemuProcess) -> dict[str, str]:
    """Node of each drive."""
    return {each["qdev"]: each["inserted"]["node-name"] for each in guest.qmp("query-block") if "inserted" in each}


def all_nodes(guest: QemuProcess) -> set[str]:
    return {each["node-name"] for each in guest.qmp("query-named-block-nodes", flat=True)}


def goes_on(guest: QemuProcess) -> None:
    guest.take_serial()
    guest.wait_serial("[A-Z]{2}")
    assert guest.status() == "running"


def commit(guest: QemuProcess) -> dict[str, Any]:
    return report("disks", "commit", "--qmp", guest.monitor_path)


def put_on_top(guest: QemuProcess, node: str, path: Path) -> Path:
    """Have the disk of that node go on with an overlay by somebody else."""
    qemu_img("create", "-q", "-f", "qcow2", path, SIZE)
    guest.qmp("blockdev-add", driver="qcow2", file=_file(path), backing=None, **{"node-name": path.stem})
    guest.qmp("blockdev-snapshot", node=node, overlay=path.stem)
    return path


GoingOn = Callable[..., None]


@pytest.fixture
def going_on(monkeypatch: pytest.MonkeyPatch) -> GoingOn:
    """``going_on(act, capture)``: done each time the guest goes on after an instant, before the rest is captured."""

    def plan(act: Callable[[], object], capture: str = "compare") -> None:
        way = WAYS[CaptureMode(capture)]
        after = way.after
        monkeypatch.setattr(way, "after", lambda *args: (act(), after(*args)))

    return plan


class TestTheImages:
    @pytest.mark.parametrize("capture", unless_thorough(["compare"], ["compare", "stopped"]))
    def test_of_all_disks_are_those_of_one_instant_and_the_guest_writes_overlays(
        self, guest: QemuProcess, disks: ManyDisks, tmp_path: Path, going_on: GoingOn, capture: str
    ) -> None:
        write(guest, 1)
        going_on(lambda: write(guest, 2), capture)
        saved = done(call(*argv(guest, tmp_path / "saved", "--capture", capture), "--json")).json
        write(guest, 3)
        goes_on(guest)

        made = {each["device"]: each for each in saved["disks"]}
        assert made.keys() == disks.written.keys()
        for name, image in disks.written.items():
            overlay = Path(made[name]["overlay"])
            assert made[name]["image"] == str(image)
            assert overlay.parent == image.parent
            assert overlay.name.startswith(f"{image.name}.{OVERLAY}")
            assert stat.S_IMODE(overlay.stat().st_mode) == 0o600
            assert numbers(read(image, made[name]["format"], tmp_path)) == {1}
            assert numbers(read(overlay, "qcow2", tmp_path)) == {3}
        assert 0 < saved["seconds"]["disks"] < saved["seconds"]["pause"]
        assert saved["phases"][0]["name"] == "disks"

    def test_are_recorded_in_the_file_as_they_are(self, guest: QemuProcess, disks: ManyDisks, tmp_path: Path) -> None:
        write(guest, 1)
        done(call(*argv(guest, tmp_path / "saved")))
        write(guest, 2)
        found = {each["device"]: each for each in report("inspect", tmp_path / "saved")["disks"]}
        for name, image in disks.written.items():
            first = found[name]["images"][0]
            status = image.stat()
            assert (first["path"], first["bytes"], first["modified_ns"]) == (
                str(image), status.st_size, status.st_mtime_ns
            )  # fmt: skip
        assert [each["path"] for each in found["ide0-hd0"]["images"]] == [str(disks.top), str(disks.base)]
        assert [each["format"] for each in found["ide0-hd0"]["images"]] == ["qcow2", "raw"]
        assert found["scsi"]["size"] == SIZE
        printed = done(call("inspect", tmp_path / "saved")).out
        assert f"image  {disks.raw}, raw, {SIZE} bytes, last written 20" in printed
        assert report("verify", tmp_path / "saved")["ok"]

    def test_of_a_guest_that_stands_still_as_well(self, guest: QemuProcess, disks: ManyDisks, tmp_path: Path) -> None:
        guest.stop()
        write(guest, 1)
        saved = done(call(*argv(guest, tmp_path / "saved"), "--json")).json
        assert guest.status() == "paused"
        write(guest, 2)
        assert len(saved["disks"]) == 4
        assert numbers(read(disks.raw, "raw", tmp_path)) == {1}

    def test_stay_those_of_each_instant_when_it_is_saved_again(
        self, guest: QemuProcess, disks: ManyDisks, tmp_path: Path
    ) -> None:
        for number in (1, 2, 3):
            write(guest, number)
            done(call(*argv(guest, tmp_path / f"saved{number}")))
        write(guest, 4)
        for number in (1, 2, 3):
            with open_image(str(tmp_path / f"saved{number}")) as image:
                assert len(image.disks) == 4
                for disk in image.disks:
                    assert len(disk.images) == number + (disk.device == "ide0-hd0")
                    top = disk.images[0]
                    assert numbers(read(Path(top.path), top.format, tmp_path)) == {number}
        assert all(path.name.count(OVERLAY) == 1 for path in disks.folder.iterdir() if OVERLAY in path.name)

    def test_may_have_overlays_elsewhere(self, guest: QemuProcess, disks: ManyDisks, tmp_path: Path) -> None:
        folder = tmp_path / "elsewhere"
        folder.mkdir()
        saved = done(call(*argv(guest, tmp_path / "saved", "--disk-folder", folder), "--json")).json
        assert sorted(each["overlay"] for each in saved["disks"]) == [str(path) for path in overlays(folder)]
        assert overlays(disks.folder) == []
        commit(guest)
        assert overlays(folder) == []


class TestCommit:
    def test_merges_all_overlays_while_the_guest_runs(
        self, guest: QemuProcess, disks: ManyDisks, tmp_path: Path
    ) -> None:
        before, base = nodes(guest), hashlib.sha256(disks.base.read_bytes()).hexdigest()
        for number in (1, 2):
            write(guest, number)
            done(call(*argv(guest, tmp_path / "saved", "--overwrite")))
        write(guest, 3)
        found = commit(guest)
        assert {each["device"]: each["image"] for each in found["committed"]} == {
            name: str(path) for name, path in disks.written.items()
        }
        assert {len(each["overlays"]) for each in found["committed"]} == {2}
        assert overlays(disks.folder) == []
        assert nodes(guest) == before
        assert not [name for name in all_nodes(guest) if name.startswith(OVERLAY)]
        for name, image in disks.written.items():
            assert numbers(read(image, _kind(name), tmp_path)) == {3}
            if _kind(name) == "qcow2":
                qemu_img("check", "-q", "-U", image)
        assert hashlib.sha256(disks.base.read_bytes()).hexdigest() == base
        goes_on(guest)
        write(guest, 4)
        assert numbers(read(disks.raw, "raw", tmp_path)) == {4}
        assert commit(guest)["committed"] == []

    def test_goes_on_where_a_killed_one_stopped(self, guest: QemuProcess, disks: ManyDisks, tmp_path: Path) -> None:
        write(guest, 1)
        done(call(*argv(guest, tmp_path / "saved")))
        write(guest, 2)
        top = nodes(guest)["/machine/peripheral/blk/virtio-backend"]
        base = next(
            each["node-name"] for each in guest.qmp("query-named-block-nodes") if each["file"] == str(disks.raw)
        )
        job = {"job-id": f"commit-{top}", "device": top, "base-node": base, "auto-dismiss": False}
        guest.qmp("block-commit", **job)
        assert len(commit(guest)["committed"]) == 4
        assert numbers(read(disks.raw, "raw", tmp_path)) == {2}
        assert guest.qmp("query-jobs") == []

    @pytest.mark.parametrize("state", ["running", "ready"])
    def test_that_is_interrupted_leaves_the_guest_with_its_overlay(
        self, guest: QemuProcess, disks: ManyDisks, tmp_path: Path, state: str
    ) -> None:
        class Interrupting(Observer):
            def phase(self, name: str, total: int = 0) -> None:
                while state == "ready" and guest.qmp("query-jobs")[0]["status"] != "ready":
                    pass
                raise KeyboardInterrupt

        write(guest, 1)
        done(call(*argv(guest, tmp_path / "saved")))
        write(guest, 2)
        before = nodes(guest)
        with open_qemu(str(guest.monitor_path)) as machine, pytest.raises(KeyboardInterrupt):
            commit_disks(machine, observer=Interrupting())
        assert (guest.qmp("query-jobs"), nodes(guest)) == ([], before)
        goes_on(guest)
        assert len(commit(guest)["committed"]) == 4
        assert numbers(read(disks.raw, "raw", tmp_path)) == {2}

    def test_is_refused_where_the_image_cannot_be_written_and_the_guest_keeps_its_overlay(
        self, guest: QemuProcess, disks: ManyDisks, tmp_path: Path
    ) -> None:
        """Here because a guest of the file has it as the image behind its own."""
        done(call(*argv(guest, tmp_path / "saved")))
        args = ("-drive", f"file={disks.raw},format=raw,if=none,id=d,readonly=on", "-device", "virtio-blk-pci,drive=d")
        with QemuProcess(*args):
            result = call("disks", "commit", "--qmp", guest.monitor_path)
        refused(result, 4, "'block-commit': Failed to get ", f"another QEMU may be using {str(disks.raw)!r}")
        assert guest.qmp("query-jobs") == []
        goes_on(guest)
        assert commit(guest)["committed"]
        assert overlays(disks.folder) == []

    def test_of_an_overlay_below_one_by_somebody_else_is_refused(
        self, guest: QemuProcess, disks: ManyDisks, tmp_path: Path
    ) -> None:
        done(call(*argv(guest, tmp_path / "saved")))
        top = nodes(guest)["/machine/peripheral/blk/virtio-backend"]
        theirs = put_on_top(guest, top, tmp_path / "theirs.qcow2")
        result = call("disks", "commit", "--qmp", guest.monitor_path)
        refused(result, 4, f"disk 'blk' is on {str(theirs)!r}, somebody else's overlay on top of one of ours", "")


class TestWithoutAWord:
    def test_a_guest_that_runs_and_has_a_disk_is_refused(self, guest: QemuProcess, tmp_path: Path) -> None:
        result = call("save", tmp_path / "saved", "--qmp", guest.monitor_path)
        refused(result, 2, "the guest writes to disks 'blk', 'ide0-hd0', 'pflash1', 'scsi'")
        for word in ("--disks overlay:", "--disks none:", "--disks refuse:"):
            assert word in result.err
        assert not (tmp_path / "saved").exists()

    def test_one_that_stands_still_is_saved_and_its_disks_are_left_alone(
        self, guest: QemuProcess, disks: ManyDisks, tmp_path: Path
    ) -> None:
        guest.stop()
        assert done(call("save", tmp_path / "saved", "--qmp", guest.monitor_path, "--json")).json["disks"] == []
        assert overlays(disks.folder) == []
        refused(call("save", tmp_path / "no", "--qmp", guest.monitor_path, "--disks", "refuse"), 2, "disks 'blk'")

    def test_one_that_somebody_lets_go_on_meanwhile_is_refused(
        self, guest: QemuProcess, tmp_path: Path, commands: Commands
    ) -> None:
        left = [guest.cont]
        guest.stop()
        commands.before = lambda name, _: left.pop()() if name == "stop" and left else None
        refused(call("save", tmp_path / "saved", "--qmp", guest.monitor_path), 2, "the guest writes to disks 'blk'")
        assert not (tmp_path / "saved").exists()
        goes_on(guest)

    def test_disks_are_only_spoken_of_with_a_qemu(self, tmp_path: Path) -> None:
        refused(call("save", tmp_path / "a", "--guest", "zero,size=1MiB", "--disks", "none"), 2, "are for --qmp", "")
        more = ("--disk-folder", tmp_path)
        refused(
            call("save", tmp_path / "a", "--qmp", tmp_path / "q", *more), 2, "--disk-folder is for --disks overlay", ""
        )


def _file(path: Path, **options: Any) -> dict[str, Any]:
    return {"driver": "file", "filename": str(path), **options}


def _node(**options: Any) -> tuple[str, ...]:
    return ("-blockdev", json.dumps({"node-name": "n", **options}), "-device", "virtio-blk-pci,drive=n,id=it")


UNSUITABLE: dict[str, tuple[Callable[[Path], tuple[str, ...]], str]] = {
    "no image": (lambda _: _node(driver="null-co", size=MIB, **{"read-zeroes": True}), "its format is 'null-co'"),
    "held back": (
        lambda p: (
            *("-object", "throttle-group,id=g"),
            *_node(**{"driver": "throttle", "throttle-group": "g", "file": _file(image(p, "raw"))}),
        ),
        "its format is 'throttle'",
    ),
    "a part of a file": (
        lambda p: _node(driver="raw", offset=4096, file=_file(image(p, "raw"))),
        "a part of its file",
    ),
    "contents elsewhere": (
        lambda p: _node(
            driver="qcow2",
            file={"driver": "file", "filename": str(image(p, "qcow2", "-o", f"data_file={p / 'data'}"))},
            **{"data-file": {"driver": "file", "filename": str(p / "data")}},
        ),
        "its contents are in another file",
    ),
    "behind a driver that makes errors": (
        lambda p: _node(driver="raw", file={"driver": "blkdebug", "image": _file(image(p, "raw"))}),
        "accessed by 'blkdebug'",
    ),
    "thrown away at the end": (
        lambda p: ("-drive", f"file={image(p, 'raw')},format=raw,if=virtio,snapshot=on"),
        "does not lead from here to the file that QEMU has open",
    ),
    "the same image twice": (
        lambda p: (
            *_node(driver="raw", file=_file(image(p, "raw"), locking="off")),
            *("-drive", f"file={p / 'image'},format=raw,if=virtio,file.locking=off"),
        ),
        "writes to the same image",
    ),
}  # fmt: skip


def image(folder: Path, kind: str, *options: str) -> Path:
    qemu_img("create", "-q", "-f", kind, *options, folder / "image", MIB)
    return folder / "image"


@pytest.mark.parametrize("what", UNSUITABLE)
def test_a_disk_that_no_overlay_can_be_on_is_refused_by_name(what: str, ticker: list[str], tmp_path: Path) -> None:
    args, reason = UNSUITABLE[what]
    with QemuProcess(*ticker, *args(tmp_path), ram=Ram()) as guest:
        before = all_nodes(guest), sorted(tmp_path.iterdir())
        result = call(*argv(guest, tmp_path / "saved"))
        refused(result, 4, "cannot be put on an overlay: ", "--disks none saves the guest without its disks")
        assert reason in result.err
        assert (all_nodes(guest), sorted(tmp_path.iterdir())) == before
        assert guest.status() == "running"
        done(call("save", tmp_path / "saved", "--qmp", guest.monitor_path, "--disks", "none"))
        assert report("disks", "--qmp", guest.monitor_path)["disks"][0]["why_not"]


def test_media_and_disks_of_others_are_left_as_they_are(ticker: list[str], tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("floppy", "cdrom", "shared", "own")]
    for path in paths:
        path.write_bytes(bytes(1440 << 10))
    floppy, cdrom, shared, own = paths
    args = (
        *("-drive", f"file={floppy},format=raw,if=none,id=f", "-device", "floppy,drive=f"),
        *("-drive", f"file={cdrom},format=raw,media=cdrom,if=ide"),
        *("-drive", f"file={shared},format=raw,if=none,id=s,file.locking=off"),
        *("-device", "virtio-blk-pci,drive=s,share-rw=on"),
        *("-drive", f"file={own},format=raw,if=virtio,id=o"),
    )  # fmt: skip
    with QemuProcess(*ticker, *args, ram=Ram(), machine="pc") as guest:
        saved = done(call(*argv(guest, tmp_path / "saved"), "--json")).json
        assert [each["image"] for each in saved["disks"]] == [str(own)]
        assert [note for note in saved["notes"] if "is shared with other guests" in note]
        assert len(overlays(tmp_path)) == 1


class TestWhenItFails:
    def test_before_the_guest_is_stopped_nothing_is_left(
        self, guest: QemuProcess, disks: ManyDisks, tmp_path: Path
    ) -> None:
        before = digests(disks.folder), all_nodes(guest)
        result = call(*argv(guest, tmp_path / "saved", "--disk-folder", tmp_path / "nowhere"))
        refused(result, 5, "no such file or directory", "")
        assert (digests(disks.folder), all_nodes(guest)) == before
        goes_on(guest)

    def test_for_one_disk_all_go_on_as_before(
        self, guest: QemuProcess, disks: ManyDisks, tmp_path: Path, commands: Commands
    ) -> None:
        """Here because somebody takes an overlay away that is not used yet."""
        write(guest, 1)

        def take_away(name: str, arguments: Any) -> None:
            if name == "transaction":
                guest.qmp("blockdev-del", **{"node-name": arguments["actions"][-1]["data"]["overlay"]})

        commands.before = take_away
        before = nodes(guest), all_nodes(guest)
        result = call(*argv(guest, tmp_path / "saved"))
        refused(result, 4, "QEMU refuses 'transaction'", "")
        assert (nodes(guest), all_nodes(guest)) == before
        assert overlays(disks.folder) == []
        assert not (tmp_path / "saved").exists()
        goes_on(guest)

    def test_a_disk_that_somebody_backs_up_meanwhile_is_refused(
        self, guest: QemuProcess, disks: ManyDisks, tmp_path: Path
    ) -> None:
        guest.qmp("blockdev-add", driver="null-co", size=SIZE, **{"node-name": "away"})
        backup = {"job-id": "theirs", "device": "q", "target": "away", "sync": "full", "speed": 1}
        guest.qmp("blockdev-backup", **backup)
        before = nodes(guest), all_nodes(guest)
        result = call(*argv(guest, tmp_path / "saved"))
        refused(result, 4, "disk 'scsi' cannot be put on an overlay: its format is 'copy-before-write'")
        assert (nodes(guest), all_nodes(guest)) == before
        assert overlays(disks.folder) == []
        goes_on(guest)

    def test_after_the_instant_the_error_says_how_to_merge(
        self, guest: QemuProcess, disks: ManyDisks, tmp_path: Path, going_on: GoingOn
    ) -> None:
        def full() -> None:
            raise HostError("no space")

        write(guest, 1)
        going_on(full)
        result = call(*argv(guest, tmp_path / "saved", "--capture", "compare"))
        refused(result, 5, "no space", "`disks commit` merges overlays into their images")
        assert all(str(path) in result.err for path in overlays(disks.folder))
        assert not (tmp_path / "saved").exists()
        write(guest, 2)
        goes_on(guest)
        assert len(commit(guest)["committed"]) == 4
        assert numbers(read(disks.raw, "raw", tmp_path)) == {2}

    def test_because_somebody_moves_a_disk_meanwhile(
        self, guest: QemuProcess, disks: ManyDisks, tmp_path: Path, going_on: GoingOn
    ) -> None:
        def move() -> None:
            top = nodes(guest)["/machine/peripheral/blk/virtio-backend"]
            put_on_top(guest, top, tmp_path / f"theirs{len(list(tmp_path.glob('theirs*')))}")

        going_on(move)
        result = call(*argv(guest, tmp_path / "saved", "--capture", "compare"))
        refused(result, 4, "somebody changed the guest's disks while it was being saved", "`disks commit` merges")
        assert not (tmp_path / "saved").exists()

    def test_because_somebody_writes_to_an_image_meanwhile(
        self, guest: QemuProcess, disks: ManyDisks, tmp_path: Path, going_on: GoingOn
    ) -> None:
        """As somebody's merge does, or another process: what would be recorded is not the disk of that instant."""

        def put() -> None:
            with disks.base.open("r+b") as file:
                file.write(b"x")

        going_on(put)
        result = call(*argv(guest, tmp_path / "saved", "--capture", "compare"))
        refused(result, 4, "somebody changed the guest's disks while it was being saved", "`disks commit` merges")
        assert not (tmp_path / "saved").exists()
        goes_on(guest)


STEPS = {
    "blockdev-add": 2,
    "blockdev-create": 1,
    "job-dismiss": 1,
    "stop": 1,
    "transaction": 1,
    "cont": 1,
}
"""Commands at which the save is killed, and which one of a name."""

KILLED = """
import os, signal, sys
from parallel_fixedram.machines.qemu.monitor import Monitor
from parallel_fixedram.cli.main import main
command, left, late = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "after"
execute = Monitor.execute
def watched(self, name, *args, **options):
    global left
    left -= name == command
    if not left and not late:
        os.kill(os.getpid(), signal.SIGKILL)
    answer = execute(self, name, *args, **options)
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    return answer
Monitor.execute = watched
main(sys.argv[4:])
"""


@pytest.mark.parametrize(
    ("command", "when"),
    unless_thorough(
        [("blockdev-add", "before"), ("blockdev-create", "after"), ("transaction", "before"), ("transaction", "after")],
        [(command, when) for command in STEPS for when in ("before", "after")],
    ),
)
def test_a_save_that_is_killed_leaves_a_guest_that_runs_and_images_as_they_are(
    guest: QemuProcess, disks: ManyDisks, tmp_path: Path, command: str, when: str
) -> None:
    write(guest, 1)
    argument = [str(each) for each in argv(guest, tmp_path / "saved")]
    killed = subprocess.run([sys.executable, "-c", KILLED, command, str(STEPS[command]), when, *argument], check=False)
    assert killed.returncode == -signal.SIGKILL
    while guest.status() != "running":
        guest.wait_event("RESUME")
    goes_on(guest)
    left = overlays(disks.folder)
    assert all(numbers(read(path, _kind(name), tmp_path)) == {1} for name, path in disks.written.items())
    write(guest, 2)

    saved = done(call(*argv(guest, tmp_path / "again"), "--json")).json
    unused = [path for path in left if not any(str(path) in nodes_file for nodes_file in _files_in_use(guest))]
    said = "\n".join(saved["notes"])
    assert all(str(path) in said for path in unused)
    write(guest, 3)
    commit(guest)
    assert overlays(disks.folder) == []
    assert not [name for name in all_nodes(guest) if name.startswith(OVERLAY)]
    for name, path in disks.written.items():
        assert numbers(read(path, _kind(name), tmp_path)) == {3}


def _kind(name: str) -> str:
    """Format of the image of a disk."""
    return "qcow2" if name in ("scsi", "ide0-hd0") else "raw"


def _files_in_use(guest: QemuProcess) -> list[str]:
    return [json.dumps(each["inserted"]["image"]) for each in guest.qmp("query-block") if "inserted" in each]


def test_the_instant_is_torn_and_taken_again_with_new_overlays(
    guest: QemuProcess, disks: ManyDisks, tmp_path: Path, commands: Commands
) -> None:
    """What the guest wrote in between is in the images of the second instant."""
    write(guest, 1)
    torn: list[bool] = []

    def tear(name: str, answer: Any) -> Any:
        if name == "transaction" and not torn:
            torn.append(True)
            guest.cont()
            guest.wait_serial("[A-Z]{2}")
            write(guest, 2)
        return answer

    commands.behind = tear
    saved = done(call(*argv(guest, tmp_path / "saved", "--capture", "compare"), "--json")).json
    write(guest, 3)
    assert any("somebody let the guest go on" in note for note in saved["notes"])
    for each in saved["disks"]:
        assert OVERLAY in each["image"]
        assert numbers(read(Path(each["image"]), "qcow2", tmp_path)) == {2}
    assert numbers(read(disks.raw, "raw", tmp_path)) == {1}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can run a QEMU as somebody else")
def test_overlays_belong_to_the_user_that_qemu_runs_as(
    ticker: list[str], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """And QEMU can open them although nobody else may."""
    folder = Path(tempfile.mkdtemp())  # in which everybody may look, as not in tmp_path
    request.addfinalizer(lambda: shutil.rmtree(folder))
    disk = folder / "disk"
    disk.write_bytes(bytes(MIB))
    for path in (folder, disk):
        os.chown(path, 65534, 65534)
    args = ("-drive", f"file={disk},format=raw,if=virtio,id=d")
    with QemuProcess(*ticker, *args, "-run-with", "user=nobody", ram=Ram()) as guest:
        done(call(*argv(guest, tmp_path / "saved")))
        made = overlays(folder)[0].stat()
        assert (made.st_uid, stat.S_IMODE(made.st_mode)) == (65534, 0o600)
