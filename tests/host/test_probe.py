"""A file to try a folder with: no name is left of it, and mostly there is none for a moment."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from support.cli import untouched
from support.leftovers import descriptors

from parallel_fixedram.core.errors import FixedRamError, HostError, NoFileError
from parallel_fixedram.experiments import tools
from parallel_fixedram.experiments.file_systems import file_system
from parallel_fixedram.host.files.probe import probe


def test_it_can_be_written_and_was_never_there(tmp_path: Path) -> None:
    before = descriptors()
    with untouched(tmp_path):
        with probe(str(tmp_path)) as file:
            file.channel.write(8192, memoryview(b"data"))
            assert os.fstat(file.channel.fd).st_mode & 0o777 == 0o600
        assert descriptors() == before


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL])
def test_where_every_file_has_a_name_it_loses_its_own_at_once_or_is_not_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    real = os.open

    def named(path: Any, flags: int, *args: Any, **options: Any) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(number, os.strerror(number))
        return real(path, flags, *args, **options)

    monkeypatch.setattr(os, "open", named)
    with untouched(tmp_path), pytest.raises(FixedRamError, match="cannot create a file"), probe(str(tmp_path)):
        pass
    with probe(str(tmp_path), named=True) as file:
        assert os.listdir(tmp_path) == []
        file.channel.write(0, memoryview(b"data"))
        assert os.fstat(file.channel.fd).st_mode & 0o777 == 0o600
    with pytest.raises(NoFileError, match="no such file or directory"), probe(str(tmp_path / "none"), named=True):
        pass


def test_a_folder_that_takes_no_file_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(NoFileError, match="cannot create a file in"), probe(str(tmp_path / "none")):
        pass
    with pytest.raises(HostError), probe("/proc/self"):
        pass


@pytest.mark.parametrize(("kind", "shares"), [("xfs", True), ("ext4", False), ("tmpfs", False)])
def test_whether_copies_share_space_is_found_out_by_making_one(tmp_path: Path, kind: str, shares: bool) -> None:
    try:
        with file_system(kind, str(tmp_path), 1 << 20) as folder, untouched(Path(folder)), probe(folder) as file:
            assert file.shares_space() == shares
    except tools.Missing as why:
        pytest.skip(str(why))
