"""Fresh file systems: nothing of them is left, whatever happens."""

import os

import pytest

from parallel_fixedram.experiments import tools
from parallel_fixedram.experiments.file_systems import MOUNTED, file_system, takes_direct_io


def mounts(folder):
    """What is mounted below ``folder``: other tests mount elsewhere at the same time."""
    with open("/proc/self/mounts") as file:
        return [line for line in file if str(folder) in line]


@pytest.mark.parametrize("kind", ["folder", "tmpfs", "xfs", "ext4"])
def test_a_file_system_is_new_and_gone_afterwards(kind, tmp_path):
    try:
        with file_system(kind, str(tmp_path), 1 << 20) as folder:
            assert set(os.listdir(folder)) <= {"lost+found"}
            mounted = kind in MOUNTED or (kind == "tmpfs" and os.geteuid() == 0)  # else it is in /dev/shm
            assert (mounts(tmp_path) != []) == mounted
            if kind != "folder":
                assert os.stat(folder).st_dev != tmp_path.stat().st_dev
            with open(os.path.join(folder, "file"), "wb") as file:
                file.write(bytes(1 << 20))
    except tools.Missing as why:
        pytest.skip(str(why))
    assert mounts(tmp_path) == []
    assert not os.path.exists(folder)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["folder", "tmpfs", "ext4"])
def test_an_exception_leaves_nothing_either(kind, tmp_path):
    with pytest.raises((KeyboardInterrupt, tools.Missing)), file_system(kind, str(tmp_path), 1 << 20):
        raise KeyboardInterrupt
    assert mounts(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_more_room_than_there_is_is_missing(tmp_path):
    for kind in ("folder", "tmpfs"):
        with pytest.raises(tools.Missing, match="are needed"), file_system(kind, str(tmp_path), 1 << 60):
            pass
    assert list(tmp_path.iterdir()) == []


def test_a_look_for_direct_io_leaves_no_file(tmp_path):
    takes_direct_io(str(tmp_path))
    assert list(tmp_path.iterdir()) == []
