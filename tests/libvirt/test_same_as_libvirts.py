"""virsh does with a save image of ours what it does with its own, case by case as libvirt is tested (tp-libvirt)."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.libvirt_domains import Domain, try_virsh, virsh
from support.libvirt_images import put_behind

from parallel_fixedram.format.libvirt_image import compose_libvirt_header
from parallel_fixedram.image.image import Image

IMAGE, XML = "IMAGE", "XML"
"""Stand for the image and for a changed XML of its domain in the commands below."""


@dataclass(frozen=True)
class Images:
    """Two images of a domain that was paused, and an XML of it with another value of on_crash."""

    domain: Domain
    both: tuple[Path, Path]
    """libvirt's and ours."""
    xml: Path


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Images]:
    folder = tmp_path_factory.mktemp("images")
    theirs, ours, changed = (folder / name for name in ("theirs", "ours", "changed.xml"))
    with Domain(folder, memory=16 << 20) as domain:
        domain.start("--paused")
        virsh("save", domain.name, theirs, "--image-format", "sparse")
        with Image(str(theirs)) as image:
            assert image.file.libvirt
            xml = image.file.libvirt.xml
        put_behind(compose_libvirt_header(xml, running=False), theirs, ours, main="pc.ram")
        changed.write_bytes(xml.replace(b"<on_crash>destroy<", b"<on_crash>restart<"))
        yield Images(domain, (theirs, ours), changed)


def outcome(images: Images, image: Path, commands: tuple[str, ...]) -> tuple[list[tuple[int, str, str]], str]:
    """How the commands ended and what they said, and what the domain does then, ``gone`` if there is none."""
    ended = []
    for command in commands:
        words = [{IMAGE: str(image), XML: str(images.xml)}.get(word, word) for word in command.split()]
        result = try_virsh(*words)
        said = [text.replace(str(image), IMAGE) for text in (result.stdout, result.stderr)]
        ended.append((result.returncode, said[0], said[1]))
    state = images.domain.state if images.domain.alive else "gone"
    images.domain.destroy()
    return ended, state


@pytest.mark.parametrize(
    ("commands", "codes", "state"),
    [
        (("restore IMAGE", "restore IMAGE"), [0, 1], "paused"),
        (("restore IMAGE --running --bypass-cache",), [0], "running"),
        (("restore IMAGE --paused --xml XML", "save-image-dumpxml IMAGE"), [0, 0], "paused"),
        (("save-image-define IMAGE XML --running", "save-image-dumpxml IMAGE", "restore IMAGE"), [0] * 3, "running"),
        (("restore IMAGE --running --paused", "save-image-define IMAGE XML --running --paused"), [1, 1], "gone"),
        (("--readonly restore IMAGE", "--readonly save-image-define IMAGE XML"), [1, 1], "gone"),
        (("--readonly save-image-dumpxml IMAGE", "save-image-dumpxml IMAGE --security-info"), [1, 0], "gone"),
    ],
    ids=lambda value: "; ".join(value) if isinstance(value, tuple) else "",
)
def test_virsh_does_the_same_with_an_image_of_ours_as_with_its_own(
    tmp_path: Path, images: Images, commands: tuple[str, ...], codes: list[int], state: str
) -> None:
    outcomes = []
    for image in images.both:
        copy = tmp_path / image.name
        shutil.copyfile(image, copy)
        outcomes.append(outcome(images, copy, commands))
    theirs, ours = outcomes
    assert ours == theirs
    assert ([code for code, _, _ in ours[0]], ours[1]) == (codes, state)
    for command, (code, said, _) in zip(commands, ours[0], strict=True):
        if "dumpxml" in command and not code:
            assert f"<on_crash>{'restart' if 'define' in commands[0] else 'destroy'}</on_crash>" in said


def test_an_image_that_is_not_complete_is_refused_by_libvirt_too(tmp_path: Path, images: Images) -> None:
    image = tmp_path / "image"
    shutil.copyfile(images.both[1], image)
    with image.open("r+b") as file:
        file.write(b"LibvirtQemudPart")
    for verb in ("restore", "save-image-dumpxml"):
        assert "save image is incomplete" in try_virsh(verb, image).stderr
