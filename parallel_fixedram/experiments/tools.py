"""What experiments need besides Python: programs and rights; and which of it is missing, and why."""

from __future__ import annotations

import functools
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence

from parallel_fixedram.core.errors import FixedRamError, HostError, RequestError, os_message
from parallel_fixedram.host import linux

QEMU = "qemu-system-x86_64"
OLDEST_QEMU = (9, 0)
"""The first version with mapped-ram."""

DROP_CACHES = "/proc/sys/vm/drop_caches"

_PACKAGES = {"mkfs.xfs": "xfsprogs", "mkfs.ext4": "e2fsprogs", "losetup": "mount", QEMU: "qemu-system-x86"}
"""Debian packages that are not called like the program."""
_VERSION = re.compile(r"(\d+)\.(\d+)(\.\d+)?")
_SECONDS = 10.0


class Missing(FixedRamError):
    """Something that a case needs is missing; the message says what, and what to install or allow."""

    exit_code = 2


def find(name: str) -> str:
    """The path of a program.

    Raises:
        Missing: it is not installed.
    """
    # on some systems mkfs and its like are in folders that only root's PATH has
    path = os.environ.get("PATH", os.defpath)
    found = shutil.which(name, path=f"{path}:/usr/sbin:/sbin" if path else "")
    if found is None:
        raise Missing(f"{name} is not installed: install the package {_PACKAGES.get(name, name)}")
    return found


def find_qemu() -> str:
    """The path of a QEMU with mapped-ram: the first one in PATH.

    Raises:
        Missing: there is none, or it is too old.
    """
    path = find(QEMU)
    version = qemu_version()
    match = _VERSION.match(version or "")
    if match is None or (int(match[1]), int(match[2])) < OLDEST_QEMU:
        raise Missing(f"{path} is version {version or 'unknown'}, mapped-ram needs 9.0 or later")
    return path


def why_no_qemu() -> str | None:
    """What ``find_qemu`` raises, as a sentence; None where there is one."""
    try:
        find_qemu()
    except Missing as error:
        return error.message
    return None


def need_root(what: str) -> None:
    """Say that only root may do it.

    Raises:
        Missing: we are not root.
    """
    if os.geteuid() != 0:
        raise Missing(f"{what} needs root")


def qemu_version() -> str | None:
    """Version of the QEMU in use; None if there is none."""
    return _version_of(QEMU, "--version")


def fio_version() -> str | None:
    """Version of fio; None if there is none."""
    return _version_of("fio", "--version")


def _version_of(name: str, option: str) -> str | None:
    try:
        return _said_version(find(name), option)
    except Missing:
        return None


@functools.cache
def _said_version(path: str, option: str) -> str | None:
    try:
        said = subprocess.run([path, option], capture_output=True, text=True, check=False, timeout=_SECONDS).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = _VERSION.search(said)
    return match[0] if match else None


def run(command: Sequence[str], *, folder: str | None = None, environment: Mapping[str, str] | None = None) -> str:
    """Run a program that dies with us, and return what it prints.

    Args:
        command: the program and its arguments.
        folder: where it runs; None for here.
        environment: its variables; None for ours.

    Raises:
        HostError: it cannot be started, or fails; in its own words.
    """
    name = os.path.basename(command[0])
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            preexec_fn=dying_with_us(),
            cwd=folder,
            env=environment,
        )
    except OSError as error:
        raise HostError.from_os(f"cannot run {name}", error) from error
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split())[-300:]
        raise HostError(f"{name} failed with code {done.returncode}: {said or 'it said nothing'}")
    return done.stdout


def dying_with_us() -> Callable[[], None]:
    """For ``preexec_fn``: the process is killed when we end, however we do."""
    return functools.partial(linux.die_with_parent, signal.SIGKILL, os.getpid())


def make_folder(path: str) -> str:
    """A folder that is there; made if it is not.

    Raises:
        RequestError: something else has that name, or it cannot be made.
    """
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as error:
        raise RequestError(f"cannot make the folder {path!r}: {os_message(error.errno or 0)}") from error
    return path
