"""Images by libvirt are read here; images by us are loaded, edited and described by a stock libvirt."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.cli import call, refused
from support.command import report
from support.libvirt_domains import Domain, virsh
from support.libvirt_images import put_behind
from support.qemu_boot import BootFolder, sha256
from support.qemu_linux import LinuxGuest

from parallel_fixedram.format.libvirt_image import compose_libvirt_header
from parallel_fixedram.image.image import Image


@dataclass(frozen=True)
class Saved:
    """A Linux that was saved while it ran."""

    domain: Domain
    """Where it can be restored."""
    theirs: Path
    """libvirt's own image."""
    ours: Path
    """What it holds, written by us."""
    line: list[str]
    """The QEMU that it ran in."""
    tick: int
    """The last that was seen of it."""
    md5: str


@pytest.fixture(scope="module")
def saved(linux: LinuxGuest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Saved]:
    folder = tmp_path_factory.mktemp("saved")
    theirs, ours = folder / "theirs", folder / "ours"
    with Domain(folder, linux) as domain:
        domain.start()
        line = domain.command_line()
        tick, md5 = domain.tick()
        virsh("save", domain.name, theirs, "--image-format", "sparse")
        domain.serial.take()
        put_behind(compose_libvirt_header(xml_of(theirs), running=True), theirs, ours, main="pc.ram")
        yield Saved(domain, theirs, ours, line, tick, md5)
    shutil.rmtree(folder)


def xml_of(path: Path) -> bytes:
    with Image(str(path)) as image:
        assert image.file.libvirt
        return image.file.libvirt.xml


def edits(path: Path) -> list[str]:
    """What ``verify`` says does not match, and nothing else."""
    return [each["what"] for each in report("verify", path, code=1)["differences"]]


def edited(path: Path, editor: str, *options: str) -> None:
    """Have virsh edit the XML of an image with a command of sed."""
    virsh("save-image-edit", path, *options, environment={"EDITOR": f"sed -i {editor}"})


def test_an_image_by_libvirt_is_read_like_any_file_and_holds_what_ours_does(saved: Saved) -> None:
    assert report("diff", saved.theirs, saved.ours)["equal"]
    for path in (saved.theirs, saved.ours):
        assert report("verify", path)["ok"]
        told = report("inspect", path)["libvirt"]
        assert told["uuid"] == virsh("save-image-dumpxml", path).partition("<uuid>")[2][:36]
        assert (told["domain"], told["memory"], told["running"]) == (saved.domain.name, 192 << 20, True)


@pytest.mark.parametrize("options", [[], ["--parallel-channels", "2"], ["--bypass-cache"]], ids=" ".join)
def test_libvirt_restores_an_image_of_ours_and_the_domain_runs_on(saved: Saved, options: list[str]) -> None:
    before = sha256(saved.ours)
    virsh("restore", saved.ours, *options)
    assert saved.domain.state == "running"
    first, second = saved.domain.tick(), saved.domain.tick()
    saved.domain.destroy()
    saved.domain.serial.take()
    assert first[0] >= saved.tick
    assert second == (first[0] + 1, saved.md5)
    assert sha256(saved.ours) == before


def line_in(boot: BootFolder, saved: Saved) -> list[str]:
    """The command line of the domain's QEMU with the serial line of ``boot``."""
    boot.line()
    return [each.replace(str(saved.domain.serial.path), str(boot.path / "0" / "serial")) for each in saved.line]


@pytest.mark.parametrize("by", ["theirs", "ours"])
def test_a_stock_qemu_loads_the_stream_of_an_image_where_it_is(tmp_path: Path, saved: Saved, by: str) -> None:
    path = getattr(saved, by)
    with BootFolder(tmp_path / "boot") as boot:
        told = report("verify", path, "--load", "--run-dir", boot.run_dir, "--", *line_in(boot, saved))
        assert (told["ok"], told["bad_pages"]) == (True, 0)
        _, (guest,) = boot.start("restore", path, line=line_in(boot, saved))
        guest.wait_ticks(saved.md5, after=saved.tick)


def test_images_are_cloned_like_any_file(tmp_path: Path, saved: Saved) -> None:
    with BootFolder(tmp_path / "boot") as boot:
        _, (guest,) = boot.start("clone", saved.ours, line=line_in(boot, saved))
        guest.wait_ticks(saved.md5, after=saved.tick)


def test_an_image_by_libvirt_gets_a_clone_stream_and_libvirt_still_restores_it(tmp_path: Path, saved: Saved) -> None:
    path = tmp_path / "image"
    shutil.copyfile(saved.theirs, path)
    with BootFolder(tmp_path / "boot") as boot:
        _, (guest,) = boot.start("clone", path, "--add-clone-stream", "--punch", line=line_in(boot, saved))
        guest.wait_ticks(saved.md5, after=saved.tick)
    assert report("verify", path)["ok"]
    virsh("restore", path)
    assert saved.domain.tick()[1] == saved.md5
    saved.domain.destroy()
    saved.domain.serial.take()


def test_an_image_that_virsh_edits_stays_good_and_verify_says_what_was_edited(tmp_path: Path, saved: Saved) -> None:
    path = tmp_path / "image"
    shutil.copyfile(saved.ours, path)
    edited(path, "'s|</name>|</name><title>edited</title>|'")
    assert edits(path) == ["libvirt's domain XML does not match its digest"]
    edited(path, "'s|>edited<|>twice<|'", "--paused")
    header = "libvirt's header (whether it ran, where the cookie is) does not match its digest"
    assert edits(path) == [header, "libvirt's domain XML does not match its digest"]
    assert "<title>twice</title>" in virsh("save-image-dumpxml", path)
    assert not report("inspect", path)["libvirt"]["running"]
    assert report("diff", path, saved.theirs)["equal"]
    with BootFolder(tmp_path / "boot") as boot:
        _, (guest,) = boot.start("restore", path, line=line_in(boot, saved))
        guest.wait_ticks(saved.md5, after=saved.tick)
    virsh("restore", path)
    assert saved.domain.state == "paused"
    saved.domain.destroy()


def test_an_xml_that_does_not_fit_is_refused_by_libvirt_and_the_image_stays_what_it_is(
    tmp_path: Path, saved: Saved
) -> None:
    path, longer = tmp_path / "image", tmp_path / "longer"
    shutil.copyfile(saved.ours, path)
    told = report("inspect", path)["libvirt"]
    for more, fits in ((told["xml_room"] - told["xml_bytes"] - 100, True), (told["xml_room"], False)):
        longer.write_text(f"<title>{'x' * more}</title>")
        before = sha256(path)
        edited(path, f"-e '/<title>/d' -e '/<.name>/r {longer}'")
        assert (sha256(path) != before) == fits
    assert "x" * (told["xml_room"] - told["xml_bytes"] - 100) in virsh("save-image-dumpxml", path)
    assert edits(path) == ["libvirt's domain XML does not match its digest"]


def test_images_in_other_formats_are_described_and_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "raw"
    with Domain(tmp_path, memory=16 << 20) as domain:
        domain.start("--paused")
        virsh("save", domain.name, path, "--image-format", "raw")
    told = report("inspect", path)
    assert (told["schema"], told["libvirt"]["format"]) == ("parallel_fixedram.inspect_libvirt", "raw")
    assert (told["libvirt"]["domain"], told["libvirt"]["running"]) == (domain.name, False)
    refused(call("verify", path), 3, "libvirt save image in format raw")
