"""Which drive of a command line belongs to which recorded disk, and images that are not as they were recorded."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from parallel_fixedram.boot.disks import on_overlays
from parallel_fixedram.boot.incoming import IncomingStream
from parallel_fixedram.boot.overlays import PlannedOverlays, find_qemu_img
from parallel_fixedram.boot.plan import Boot
from parallel_fixedram.core.boot_options import DiskChoice
from parallel_fixedram.core.disks import Disk
from parallel_fixedram.core.errors import ContentsDiffer, HostError, NoFileError, RequestError
from parallel_fixedram.host.files.image_facts import image_now

MakeDisk = Callable[..., Disk]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where images are, and where commands run: a name without folders is one from here."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def qemu_img(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> str:
    """One that is found first and does nothing: raw images have nothing behind them that would have to be asked for."""
    path = tmp_path_factory.mktemp("bin") / "qemu-img"
    path.write_text("#!/bin/sh\nexit 1\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{path.parent}:{os.environ['PATH']}")
    return os.fspath(path)


@pytest.fixture
def raw(folder: Path) -> MakeDisk:
    """Makes a disk on raw images of these names, and the images that are not there."""

    def made(device: str, *names: str) -> Disk:
        for name in names:
            if not (folder / name).exists():
                (folder / name).write_bytes(name.encode() * 1024)
        images = tuple(image_now(os.fspath(folder / name), "raw") for name in names)
        return Disk(device=device, node=f"#{device}", size=512, images=images)

    return made


def boot(*arguments: str, guests: int = 1) -> Boot:
    return Boot(commands=[["qemu-system-none", *arguments]] * guests, source=IncomingStream(path="/vm.mr"))


def drive(name: str, *more: str) -> tuple[str, str]:
    return "-drive", ",".join((f"file={name},format=raw,if=virtio", *more))


def test_each_guest_has_overlays_of_its_own_in_its_run_folder(raw: MakeDisk, folder: Path, qemu_img: str) -> None:
    disks = (raw("one", "1.img"), raw("/machine/unattached/device[7]/x", "2.img"))
    found = on_overlays(boot(*drive("2.img"), "-hda", "1.img", guests=2), disks, "/run/clones")
    assert [[each.path for each in own] for own in found.disks.overlays] == [
        [f"/run/clones/{number}/disk0-one.qcow2", f"/run/clones/{number}/disk1-machine-unattached-device-7-x.qcow2"]
        for number in range(2)
    ]
    assert [(each.image, each.format) for each in found.disks.overlays[1]] == [
        (os.fspath(folder / name), "raw") for name in ("1.img", "2.img")
    ]
    assert [list(command[1:]) for command in found.commands] == [
        [
            *("-drive", f"file=/run/clones/{number}/disk1-machine-unattached-device-7-x.qcow2,format=qcow2,if=virtio"),
            *("-hda", f"/run/clones/{number}/disk0-one.qcow2"),
        ]
        for number in range(2)
    ]
    assert found.changes[0].startswith("-hda '1.img' is now the overlay '/run/clones/0/disk0-one.qcow2' on '")
    assert "removed when it has ended" in found.changes[-1]
    assert found.disks.qemu_img == qemu_img
    assert found.disks.commands()[:2] == [["mkdir", "-p", "-m", "700", f"/run/clones/{number}"] for number in range(2)]


def test_a_folder_for_overlays_takes_those_of_many_commands(raw: MakeDisk, folder: Path, qemu_img: str) -> None:
    disks = (raw("one", "1.img"),)
    paths = set()
    for _ in range(2):
        found = on_overlays(boot(*drive("1.img"), guests=2), disks, "/run/clones", ".")
        paths |= set(found.disks.paths())
        assert not any("removed" in each for each in found.changes)
    assert len(paths) == 4
    assert {os.path.dirname(path) for path in paths} == {os.fspath(folder)}


def test_without_recorded_disks_nothing_changes() -> None:
    before = boot(*drive("1.img"), "disk.img")
    assert on_overlays(before, (), "/run/clones") is before


@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_a_drive_is_known_by_its_file_and_not_by_its_name(
    raw: MakeDisk, qemu_img: str, link: Callable[[str, str], None]
) -> None:
    disk = raw("one", "1.img")
    link("1.img", "other")
    found = on_overlays(boot(*drive("other")), (disk,), "/run")
    assert found.commands[0][2] == "file=/run/0/disk0-one.qcow2,format=qcow2,if=virtio"


@pytest.fixture
def _images_are_what_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is behind them was not changed, whatever it is."""
    monkeypatch.setattr("parallel_fixedram.boot.disks.refuse_another_chain", lambda disk, qemu_img: None)


@pytest.mark.usefixtures("_images_are_what_they_were")
def test_an_overlay_that_the_command_line_does_not_know_is_found_by_what_is_behind_it(
    raw: MakeDisk, qemu_img: str
) -> None:
    disks = (raw("a", "a.1", "a.img", "base"), raw("b", "b.img", "base"))
    found = on_overlays(boot(*drive("a.img"), *drive("b.img"), *drive("base", "readonly=on")), disks, "/run")
    assert [each.split(",")[0] for each in found.commands[0][2::2]] == [
        "file=/run/0/disk0-a.qcow2",
        "file=/run/0/disk1-b.qcow2",
        "file=base",
    ]
    assert [os.path.basename(each.image) for each in found.disks.overlays[0]] == ["a.1", "b.img"]


@pytest.mark.usefixtures("_images_are_what_they_were")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "no drive of the QEMU command line has image '{folder}/a.1' of disk 'a'; it has none"),
        (
            (*drive("c.img"), "-drive", "file=nbd://h/x,id=n"),
            "no drive of the QEMU command line has image '{folder}/a.1' of disk 'a'; it has "
            "-drive 'file=c.img,format=raw,if=virtio', -drive 'file=nbd://h/x,id=n'",
        ),
        (
            (*drive("base"),),
            "-drive 'file=base,format=raw,if=virtio' is both disk 'a' and disk 'b' of the file",
        ),
        (
            (*drive("a.img"), "-hdb", "a.img", *drive("b.img")),
            "disk 'a' of the file, on '{folder}/a.img', has several drives: "
            "-drive 'file=a.img,format=raw,if=virtio' and -hdb 'a.img'",
        ),
        (
            (*drive("a.img", "offset=512"), *drive("b.img")),
            "-drive 'file=a.img,format=raw,if=virtio,offset=512', disk 'a', cannot get an overlay: "
            "an overlay cannot have its offset=",
        ),
    ],
)
def test_a_disk_without_a_drive_of_its_own_is_refused(
    raw: MakeDisk,
    folder: Path,
    qemu_img: str,
    arguments: tuple[str, ...],
    message: str,
) -> None:
    disks = (raw("a", "a.1", "a.img", "base"), raw("b", "b.img", "base"))
    with pytest.raises(RequestError) as caught:
        on_overlays(boot(*arguments), disks, "/run")
    assert message.format(folder=folder) in caught.value.message
    assert "--disks none" in caught.value.hint


def test_drives_that_the_file_does_not_record_stay_and_are_named(raw: MakeDisk, qemu_img: str) -> None:
    more = (*drive("new.img"), *drive("cd.iso", "media=cdrom"))
    found = on_overlays(boot(*drive("1.img"), *more), (raw("one", "1.img"),), "/run")
    assert tuple(found.commands[0][3:]) == more
    assert found.changes[1:-1] == [
        "-drive 'file=new.img,format=raw,if=virtio' is not one of the disks that the file records, and stays as it is"
    ]


def touched(path: Path) -> None:
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns - 1))


def grown(path: Path) -> None:
    os.truncate(path, path.stat().st_size + 1)


def flipped(path: Path) -> None:
    """A byte is another one, and the times say nothing."""
    status = path.stat()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (touched, "was written to since the guest was saved: last at 20"),
        (grown, "was written to since the guest was saved: it has 5.0 KiB (5121 bytes), and had 5.0 KiB (5120 bytes)"),
        (flipped, "was written to since the guest was saved: its first or last MiB has changed"),
    ],
)
@pytest.mark.parametrize("which", [0, 1])
def test_an_image_that_was_written_since_is_refused_wherever_it_is_in_the_chain(
    raw: MakeDisk, folder: Path, qemu_img: str, change: Callable[[Path], None], message: str, which: int
) -> None:
    disk = raw("one", "1.img", "2.img")
    path = folder / f"{1 + which}.img"
    change(path)
    with pytest.raises(ContentsDiffer) as caught:
        on_overlays(boot(*drive("1.img")), (disk,), "/run")
    assert caught.value.message.startswith(f"image '{path}' of disk 'one' {message}")


def test_an_image_that_was_copied_with_its_times_is_the_same(raw: MakeDisk, folder: Path, qemu_img: str) -> None:
    disk = raw("one", "1.img")
    subprocess.run(["cp", "--preserve", "1.img", "copy"], check=True)
    os.rename("copy", "1.img")
    assert on_overlays(boot(*drive("1.img")), (disk,), "/run").disks.recorded == (disk,)


def test_an_image_that_is_gone_or_no_file_any_more_is_refused(raw: MakeDisk, folder: Path, qemu_img: str) -> None:
    disk = raw("one", "1.img")
    os.unlink("1.img")
    with pytest.raises(NoFileError, match=r"image '.*1.img' of disk 'one' is not there any more: no such file"):
        on_overlays(boot(*drive("1.img")), (disk,), "/run")
    os.mkfifo("1.img")
    with pytest.raises(RequestError, match="is not a regular file"):
        on_overlays(boot(*drive("1.img")), (disk,), "/run")


def test_qemu_img_is_the_one_beside_the_qemu_that_is_started(tmp_path: Path, qemu_img: str) -> None:
    for name in ("qemu-img", "qemu-system-x86_64"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    beside = os.fspath(tmp_path / "qemu-img")
    assert find_qemu_img(["timeout", "5", os.fspath(tmp_path / "qemu-system-x86_64"), "-S"]) == beside
    assert find_qemu_img(["sh", "-c", "qemu"]) == qemu_img


def test_without_qemu_img_there_are_no_overlays(raw: MakeDisk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = raw("one", "1.img")
    monkeypatch.setenv("PATH", os.fspath(tmp_path))
    with pytest.raises(HostError, match="qemu-img, which makes the overlays") as caught:
        on_overlays(boot(*drive("1.img")), (disk,), "/run")
    assert caught.value.hint.startswith("install qemu-utils")


def test_what_qemu_img_says_is_told(raw: MakeDisk, tmp_path: Path, qemu_img: str) -> None:
    Path(qemu_img).write_text("#!/bin/sh\necho 'qemu-img: no room' >&2\nexit 1\n")
    planned = on_overlays(boot(*drive("1.img")), (raw("one", "1.img"),), "/run").disks
    with pytest.raises(HostError, match=r"cannot make an overlay on '.*1.img': qemu-img: no room$"):
        planned.contents(1, os.fspath(tmp_path))


@pytest.mark.parametrize(
    ("message", "hint"),
    [
        (
            "QEMU refuses 'cont': Failed to get shared \"write\" lock",
            "another process writes to an image that the file",
        ),
        (
            "Could not open '/run/0/disk0-one.qcow2': filesystem does not support O_DIRECT",
            "choose a --disk-folder on a file system with O_DIRECT",
        ),
        (
            "Could not open '/run/0/disk0-one.qcow2': Permission denied",
            "choose a --disk-folder that QEMU's user may enter",
        ),
        ("Could not open '/other': Permission denied", ""),
        ("QEMU: address already in use", ""),
    ],
)
def test_what_qemu_says_of_overlays_has_a_hint(raw: MakeDisk, qemu_img: str, message: str, hint: str) -> None:
    planned = on_overlays(boot(*drive("1.img")), (raw("one", "1.img"),), "/run").disks
    assert planned.hint(message).startswith(hint)
    assert bool(planned.hint(message)) == bool(hint)
    assert PlannedOverlays().hint(message) == ""


def test_a_folder_needs_overlays_and_has_to_be_one(raw: MakeDisk, qemu_img: str) -> None:
    with pytest.raises(RequestError, match="a folder for overlays, and no overlays"):
        DiskChoice(overlays=False, folder="/tmp")
    with pytest.raises(RequestError, match="there is no folder 'none' for overlays"):
        on_overlays(boot(*drive("1.img")), (raw("one", "1.img"),), "/run", "none")
