"""A file system that is really full: a small tmpfs, which needs the right to mount."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import saving
from support.pictures import content, draw

import parallel_fixedram
from parallel_fixedram.core.errors import HostError
from parallel_fixedram.host.files.space import Space

SIZE = 2 << 20
PICTURE = "A" * 900 + "0-" * 10
"""More than fits."""


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 2 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "small", folder], check=False, capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"no small file system: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.fixture
def ram(tmp_path: Path) -> dict[str, str]:
    path = tmp_path / "ram"
    with path.open("w+b") as file:
        draw(file.fileno(), PICTURE)
    return {"pc.ram": str(path)}


def save(ram: dict[str, str], path: Path) -> None:
    saving.save(
        lambda: parallel_fixedram.open_ram(ram), str(path), channels=2, experimental_multifd=True, overwrite=True
    )


def test_a_save_notices_before_it_writes_that_the_file_system_is_too_small(full: Path, ram: dict[str, str]) -> None:
    (full / "vm.mr").write_bytes(b"old")

    with pytest.raises(HostError, match="reserve") as caught:
        save(ram, full / "vm.mr")

    assert caught.value.errno == errno.ENOSPC
    assert os.listdir(full) == ["vm.mr"]
    assert (full / "vm.mr").read_bytes() == b"old"


def test_a_save_that_cannot_reserve_space_notices_when_it_writes(
    full: Path, ram: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (full / "vm.mr").write_bytes(b"old")
    monkeypatch.setattr(Space, "reserve", lambda *_: False)

    with pytest.raises(HostError, match="cannot write") as caught:
        save(ram, full / "vm.mr")

    assert caught.value.errno == errno.ENOSPC
    assert os.listdir(full) == ["vm.mr"]
    assert (full / "vm.mr").read_bytes() == b"old"


def test_a_restore_into_memory_that_is_too_small_leaves_nothing(
    full: Path, ram: dict[str, str], tmp_path: Path
) -> None:
    save(ram, tmp_path / "vm.mr")

    with pytest.raises(HostError) as caught:
        saving.restore(str(tmp_path / "vm.mr"), {"pc.ram": str(full / "ram")}, channels=2, experimental_multifd=True)

    assert caught.value.errno == errno.ENOSPC
    assert os.listdir(full) == []


def test_what_fits_is_saved_and_restored(full: Path, tmp_path: Path) -> None:
    path = tmp_path / "ram"
    with path.open("w+b") as file:
        draw(file.fileno(), "A0-b")

    save({"pc.ram": str(path)}, full / "vm.mr")
    parallel_fixedram.restore(str(full / "vm.mr"), {"pc.ram": str(full / "ram")})

    assert (full / "ram").read_bytes() == content("A0-b")
