"""Finding programs: what is missing skips a test on a developer's machine and fails it in CI."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
from typing import NoReturn

import pytest

OLDEST_QEMU = (9, 0)
"""The first version with mapped-ram."""

PACKAGES = {"mkfs.xfs": "xfsprogs", "mkfs.ext4": "e2fsprogs", "busybox": "busybox-static", "qemu-img": "qemu-utils"}
"""Debian packages that are not called like the program."""


class Missing(Exception):
    """Something the tests need is not here; the text says what to install."""


def missing(reason: str) -> NoReturn:
    """Skip the running test or fixture; in CI fail it, for there everything has to be installed."""
    if os.environ.get("CI"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def require_tool(name: str, path: str | None = None) -> str:
    """The path of a program, looked for in ``path`` or in PATH."""
    if path is None:
        # Debian keeps mkfs and its like where only root's PATH looks.
        path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    return shutil.which(name, path=path) or missing(
        f"{name} is not installed: install the package {PACKAGES.get(name, name)}"
    )


@functools.cache
def find_qemu() -> str:
    """The path of a QEMU with mapped-ram: ``$QEMU`` or the ``qemu-system-x86_64`` in PATH.

    Raises:
        Missing: there is none, or it is too old.
    """
    wanted = "install qemu-system-x86 9.0 or later (Debian 12: from bookworm-backports)"
    path = shutil.which(os.environ.get("QEMU") or "qemu-system-x86_64")
    if path is None:
        raise Missing(f"qemu-system-x86_64 is not installed: {wanted}")
    answer = subprocess.run([path, "-version"], capture_output=True, text=True, check=False).stdout
    version = re.search(r"version (\d+)\.(\d+)", answer)
    if version is None or tuple(map(int, version.groups())) < OLDEST_QEMU:
        raise Missing(f"{path} has no mapped-ram, it is {version[0] if version else 'not a QEMU'}: {wanted}")
    return path


def require_qemu() -> str:
    """The path of a QEMU with mapped-ram."""
    try:
        return find_qemu()
    except Missing as reason:
        missing(str(reason))
