"""Guests and QEMU's own files, each made once for all tests."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from support.command import report
from support.disks_of_guests import ManyDisks, make_images
from support.qemu import Missing, QemuError, QemuProcess, Ram, boot_from, missing, require_qemu
from support.qemu_boot import BootFolder
from support.qemu_commands import Commands, commands_from_now_on
from support.qemu_files import SavedGuest, Variants, write_background_snapshot
from support.qemu_linux import LinuxGuest, linux_guest
from support.qemu_tools import require_tool
from support.snapshots import When, at_moments

from parallel_fixedram.engine.capture import pause
from parallel_fixedram.experiments.boot_sector import boot_image

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.qemu)


@pytest.fixture(scope="session")
def qemu_binary() -> str:
    """The path of a QEMU with mapped-ram."""
    return require_qemu()


@pytest.fixture(scope="session")
def ticker(qemu_binary: str, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Arguments that boot the boot-sector guest: 100 rounds a second over 1..40 MiB."""
    image = tmp_path_factory.mktemp("ticker") / "image"
    image.write_bytes(boot_image())
    return boot_from(image)


@pytest.fixture
def when(monkeypatch: pytest.MonkeyPatch) -> When:
    """``when(moment, act)``: done once, at that moment of the next snapshot."""
    return at_moments(monkeypatch)


@pytest.fixture(scope="session")
def linux(qemu_binary: str, tmp_path_factory: pytest.TempPathFactory) -> LinuxGuest:
    """The Linux guest; start it with ``QemuProcess(*linux.args(), ram=Ram(256 << 20))``."""
    try:
        return linux_guest(tmp_path_factory.mktemp("linux"))
    except Missing as reason:
        missing(str(reason))


@pytest.fixture(scope="session")
def saved(linux: LinuxGuest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """Our file of the Linux guest with its own arguments and 256 MiB, saved while it ran, and a tick before that."""
    path = tmp_path_factory.mktemp("saved") / "vm.mr"
    with QemuProcess(*linux.args(), ram=Ram(256 << 20)) as guest:
        guest.wait_serial(r"tick 2 \w+\r")
        report("save", path, "--qmp", guest.monitor_path)
        guest.wait_serial(r"tick \d+ \w+\r")
    return path, 2


@pytest.fixture(scope="session")
def qemu_files(qemu_binary: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Variants]:
    """QEMU's own mapped-ram files by name, each made once."""
    folder = tmp_path_factory.mktemp("qemu-files")
    yield Variants(folder)
    shutil.rmtree(folder)  # hundreds of MiB, which pytest would keep for three runs


@pytest.fixture
def plain(qemu_files: Variants) -> SavedGuest:
    """QEMU's own file of the guest of ``ticker``."""
    return qemu_files["plain"]


@pytest.fixture(scope="session")
def ours(qemu_files: Variants, tmp_path_factory: pytest.TempPathFactory) -> SavedGuest:
    """A file of ours of a guest that has run; nobody changes it."""
    saved = replace(qemu_files["plain"], path=tmp_path_factory.mktemp("ours") / "vm.mr")
    with QemuProcess(*saved.args, ram=saved.ram) as guest:
        guest.wait_serial("C")
        report("save", saved.path, "--qmp", guest.monitor_path)
    return saved


@pytest.fixture
def boot(tmp_path: Path) -> Iterator[BootFolder]:
    """A folder for guests that are started; they end with the test."""
    with BootFolder(tmp_path / "boot") as folder:
        yield folder


@pytest.fixture(scope="session")
def background_snapshot(qemu_binary: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SavedGuest]:
    """A file whose bitmaps QEMU never wrote; skips, in CI too, where the host does not allow to make one."""
    folder = tmp_path_factory.mktemp("background-snapshot")
    try:
        yield write_background_snapshot(folder)
    except QemuError as error:
        pytest.skip(str(error))
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def disks(tmp_path: Path) -> ManyDisks:
    """Images of every kind of disk, nothing in them yet."""
    require_tool("qemu-img")
    folder = tmp_path / "images"
    folder.mkdir()
    return make_images(folder)


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> Commands:
    return commands_from_now_on(monkeypatch)


@pytest.fixture
def long_stop(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Says from how many seconds on a stop is said to be long."""
    return lambda seconds: monkeypatch.setattr(pause, "LONG_STOP_SECONDS", seconds)
