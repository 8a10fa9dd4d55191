"""A libvirt that answers, and a Linux that its domains can boot."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from support.libvirt_domains import libvirtd as running_libvirtd
from support.qemu_linux import LinuxGuest, linux_guest
from support.qemu_tools import Missing, missing

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.qemu)


@pytest.fixture(scope="session", autouse=True)
def libvirtd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A libvirtd answers."""
    with running_libvirtd(tmp_path_factory.mktemp("libvirtd")):
        yield


@pytest.fixture(scope="session")
def linux(libvirtd: None, tmp_path_factory: pytest.TempPathFactory) -> LinuxGuest:
    """The Linux guest."""
    try:
        return linux_guest(tmp_path_factory.mktemp("linux"))
    except Missing as reason:
        missing(str(reason))


@pytest.fixture(scope="session")
def library() -> None:
    """libvirt's Python library is installed; it is imported only in processes of its own."""
    if find_spec("libvirt") is None:
        missing("libvirt's Python library is not installed: pip install '.[libvirt]', with libvirt-dev and pkg-config")
