import errno
import io
import os
from pathlib import Path

import psutil
import pytest
from support.system_calls import without

from parallel_fixedram.host import facts
from parallel_fixedram.host.facts import find_mount, host_facts, memory_bytes


def test_the_facts_are_those_that_others_find(tmp_path: Path) -> None:
    found = host_facts(str(tmp_path / "FILE"))
    assert found["cpus"] == psutil.cpu_count()
    assert found["memory"] == memory_bytes("MemTotal") == psutil.virtual_memory().total


def test_the_file_system_is_the_one_that_others_find(tmp_path: Path) -> None:
    types = {mount.mountpoint: mount.fstype for mount in psutil.disk_partitions(all=True)}
    above = [point for point in types if os.path.commonpath((point, os.path.realpath(tmp_path))) == point]
    if not above:
        pytest.skip("no mount above our files is seen here, as in a chroot whose / is no mount")
    found = host_facts(str(tmp_path / "FILE"))
    assert found["file_system"] == types[max(above, key=len)]
    assert "rw" in found["mount_options"].split(",")


@pytest.mark.parametrize(
    ("path", "file_system", "options"),
    [
        ("/var", "ext4", "rw,relatime"),
        ("/mnt/a b/x", "xfs", "ro"),
        ("/mnt/a b", "xfs", "ro"),
        ("/mnt/a", "ext4", "rw,relatime"),
        ("/mnt/a bc", "ext4", "rw,relatime"),
        ("/covered/x", "second", "rw"),
    ],
)
def test_the_mount_is_the_nearest_above_and_the_last_that_was_made(path: str, file_system: str, options: str) -> None:
    mounts = (
        "/dev/root / ext4 rw,relatime 0 0\n"
        "first /covered first rw 0 0\n"
        "second /covered second rw 0 0\n"
        "/dev/b /mnt/a\\040b xfs ro 0 0\n"
    )
    found = find_mount(path, mounts.splitlines())
    assert found is not None
    assert (found.file_system, found.options) == (file_system, options)


def test_what_the_system_does_not_tell_is_none() -> None:
    found, available = without(
        ("openat", "statfs", "fstatfs"), errno.EACCES, lambda: (host_facts("/"), memory_bytes("MemAvailable"))
    )
    assert (found["memory"], found["mount_options"]) == (None, None)
    assert available is None


def test_where_no_mount_point_is_above_a_file_its_file_system_tells_by_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a chroot, the mounts that are seen may all be elsewhere."""
    mounts = "/dev/root /somewhere/else ext4 rw,relatime 0 0\n"
    monkeypatch.setattr(facts, "open", lambda *_, **__: io.StringIO(mounts), raising=False)
    assert host_facts("/dev/shm/FILE")["file_system"] == "tmpfs"
    assert host_facts("/proc/FILE")["file_system"] == "0x9fa0"
    assert host_facts("/proc/FILE")["mount_options"].split(",")[0] in ("rw", "ro")


def test_a_figure_of_memory_that_there_is_not_is_none() -> None:
    assert memory_bytes("MemNone") is None
