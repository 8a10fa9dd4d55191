"""What tests take out of Debian's packages without installing them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from support.qemu_tools import Missing


def run_tool(*command: str, cwd: Path | None = None) -> str:
    """Run a program that has to succeed; returns what it prints."""
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=cwd).stdout


def download(name: str, folder: Path) -> Path:
    """Fetch a package of this system's release into a folder."""
    run_tool("apt-get", "download", "--quiet", name, cwd=folder)
    return next(folder.glob(f"{name}_*.deb"))


def put_guest_agent(root: Path, cache: Path) -> None:
    """Put QEMU's guest agent into the root of a guest, as ``/sbin/qemu-ga``, with this system's libraries.

    Args:
        root: of the guest's file system.
        cache: where the agent is kept, a folder.

    Raises:
        Missing: the package, or a library, cannot be had here.
    """
    agent = cache / "qemu-ga"
    try:
        if not agent.exists():
            with tempfile.TemporaryDirectory(dir=cache) as folder:
                run_tool("dpkg-deb", "--extract", str(download("qemu-guest-agent", Path(folder))), folder)
                os.replace(Path(folder) / "usr/sbin/qemu-ga", agent)
        libraries = run_tool("ldd", str(agent))
    except (OSError, subprocess.CalledProcessError) as error:
        raise Missing(f"the guest agent cannot be fetched: {getattr(error, 'stderr', '') or error}") from error
    if "not found" in libraries:
        raise Missing(f"libraries of the guest agent are missing here: {libraries}")
    (root / "sbin").mkdir()
    shutil.copy(agent, root / "sbin" / "qemu-ga")
    for path in re.findall(r"(/\S+) \(0x", libraries):
        inside = root / path.removeprefix("/")
        inside.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, inside)
