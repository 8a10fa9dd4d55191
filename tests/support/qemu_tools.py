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

PACKAGES = {
    "mkfs.xfs": "xfsprogs",
    "mkfs.ext4": "e2fsprogs",
    "busybox": "busybox-static",
    "qemu-img": "qemu-utils",
    "virsh": "libvirt-clients",
    "libvirtd": "libvirt-daemon",
    "nbdfuse": "libnbd-bin",
    "nbdkit": "nbdkit-plugin-python",
}
"""Debian packages that are not called like the program."""

QEMU_PACKAGES = {"x86_64": "x86", "i386": "x86", "aarch64": "arm", "ppc64": "ppc"}
"""By target, the ends of names of Debian packages that are not called like the target."""


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


def with_own_mounts() -> list[str]:
    """What stands before a command that is to have mounts of its own.

    Skips where that cannot be: without the rights, or in a chroot whose / is no mount.
    """
    unshare = [require_tool("unshare"), "--mount"]
    tried = subprocess.run([*unshare, "true"], capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"no mounts of its own can be had here: {tried.stderr.strip()}")
    return unshare


@functools.cache
def find_qemu(target: str = "x86_64") -> str:
    """The path of a QEMU with mapped-ram: the first ``qemu-system-TARGET`` in PATH.

    Raises:
        Missing: there is none, or it is too old.
    """
    package = f"qemu-system-{QEMU_PACKAGES.get(target, target)}"
    wanted = f"install {package} 9.0 or later (Debian 12: from bookworm-backports)"
    name = f"qemu-system-{target}"
    path = shutil.which(name)
    if path is None:
        raise Missing(f"{name} is not installed: {wanted}")
    version = qemu_version(path)
    if version < OLDEST_QEMU:
        has = "version {}.{}".format(*version) if version > (0, 0) else "not a QEMU"
        raise Missing(f"{path} has no mapped-ram, it is {has}: {wanted}")
    return path


@functools.cache
def qemu_version(path: str) -> tuple[int, int]:
    """Major and minor version of a QEMU; zeros if it is none."""
    answer = subprocess.run([path, "-version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"version (\d+)\.(\d+)", answer)
    return (int(found[1]), int(found[2])) if found else (0, 0)


@functools.cache
def all_qemus() -> dict[tuple[int, int], str]:
    """Every QEMU with mapped-ram in PATH by its version, oldest first; of two of one version, the first in PATH."""
    folders = os.environ.get("PATH", os.defpath).split(os.pathsep)
    paths = [path for folder in folders if folder and (path := shutil.which("qemu-system-x86_64", path=folder))]
    found = {qemu_version(path): path for path in reversed(paths)}
    return {version: found[version] for version in sorted(found) if version >= OLDEST_QEMU}


@functools.cache
def _machines(target: str) -> str:
    return subprocess.run([require_qemu(target), "-M", "help"], capture_output=True, text=True, check=True).stdout


def machine_type(alias: str) -> str:
    """What ``q35`` or ``pc`` means to the QEMU that is tested, such as ``pc-q35-10.0``."""
    found = re.search(rf"^{alias} .*\(alias of (\S+)\)$", _machines("x86_64"), re.M)
    assert found, _machines("x86_64")
    return found[1]


def require_machine(machine: str, target: str = "x86_64") -> None:
    """Skip the running test where QEMU has removed a machine type, in CI too: an older QEMU is tested there as well."""
    name = machine.split(",")[0]
    if not re.search(rf"^{re.escape(name)} ", _machines(target), re.M):
        pytest.skip(f"this QEMU no longer has the machine type {name}")


def require_qemu_version(major: int, minor: int) -> str:
    """The path of a QEMU of a version, anywhere in PATH."""
    return all_qemus().get((major, minor)) or missing(
        f"there is no QEMU {major}.{minor} in PATH: CONTRIBUTING.md says how to have several"
    )


def require_qemu(target: str = "x86_64") -> str:
    """The path of a QEMU with mapped-ram."""
    try:
        return find_qemu(target)
    except Missing as reason:
        missing(str(reason))
