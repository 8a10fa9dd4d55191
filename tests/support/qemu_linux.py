"""A Linux guest: Debian's kernel, a busybox, and ``guests/init``; up in two seconds under TCG.

The kernel comes out of the package that ``linux-image-amd64`` depends on, or those that this one depends on, without
installing them, and is kept in ``.cache``.
"""

from __future__ import annotations

import functools
import hashlib
import lzma
import os
import random
import re
import shutil
import struct
import subprocess
import tarfile
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from support.packages import download, put_guest_agent, run_tool
from support.qemu_tools import Missing, require_tool

CACHE = Path(__file__).parents[2] / ".cache" / "guest"
INIT = Path(__file__).parent / "guests" / "init"
MIB = 1 << 20

SETUP_SECTORS_AT = 0x1F1
PAYLOAD_AT = 0x248
"""Where a bzImage says how long its real-mode part is and where its compressed kernel lies (Linux: x86/boot.rst)."""


@functools.cache
def seed() -> bytes:
    """What the known file is made of; 8 digits and this make a piece whose length is no multiple of a page."""
    return random.Random("parallel-fixedram").randbytes(MIB - 1)


MODULES = (
    "virtio_ring",
    "virtio",
    "virtio_pci_legacy_dev",
    "virtio_pci_modern_dev",
    "virtio_pci",
    "virtio_blk",
    "virtio_balloon",
    "virtio_console",
)
"""What Debian's kernels have as modules, in the order in which they are loaded; some have some of them built in."""
FILE_SYSTEM = ("crc32c_generic", "crc16", "mbcache", "jbd2", "ext4")
"""The same, for a file system."""
LATER = ("qemu_fw_cfg",)
"""Modules that are loaded only when a command needs them: this one looks for what there is once, when it is loaded."""
WANTED = (*MODULES, *FILE_SYSTEM, *LATER)
INSTEAD = {"crc32c_generic": "crc32"}
"""What a module has become a part of (Linux 6.15)."""
BUILT_IN = "modules.builtin"
"""Where a kernel lists the modules that are built in (Linux: Documentation/kbuild/kbuild.rst)."""


@dataclass(frozen=True)
class LinuxGuest:
    """A kernel and an initramfs, to be started any number of times.

    It prints ``ready``, then ``tick N MD5``, and understands ``dirty MIB``, ``zero MIB``, ``forget``, ``read``,
    ``rest``, ``records``, ``rest_records``, ``sum``, ``agent``, ``random``, ``who``, ``date`` and ``off`` (see
    guests/init).
    """

    kernel: Path
    initrd: Path

    def args(self, *, size_mib: int = 4, tick: float = 0.2, more: str = "") -> list[str]:
        """Arguments for QemuProcess; it needs 192 MiB of RAM and what it is told to fill.

        Args:
            size_mib: size of the known file.
            tick: seconds between two ticks.
            more: arguments of the kernel; with ``virtio`` among them it has drivers for a virtio disk, balloon and
            serial port.
        """
        # What the guest would measure takes long and goes wrong under TCG.
        quick = "mitigations=off no_timer_check tsc=reliable random.trust_cpu=on cryptomgr.notests rodata=off"
        quick += " initcall_blacklist=load_system_certificate_list,init_blk_tracer,crypto_kdf108_init,cubictcp_register"
        quick += " memhp_default_state=offline"  # memory that is used cannot be plugged out
        command_line = f"console=ttyS0 quiet panic=1 {quick} size={size_mib} tick={tick} {more}"
        kernel = ["-kernel", str(self.kernel), "-initrd", str(self.initrd), "-append", command_line]
        return ["-cpu", "max", *kernel]

    @staticmethod
    def md5(size_mib: int = 4) -> str:
        """Check sum of the known file."""
        pieces = (b"%08d" % number + seed() for number in range(size_mib))
        return hashlib.md5(b"".join(pieces)[: size_mib * MIB]).hexdigest()


def linux_guest(folder: Path, *, agent: bool = False) -> LinuxGuest:
    """Build the guest; the initramfs is put into ``folder``.

    Args:
        folder: is there.
        agent: whether it has QEMU's guest agent, which makes it larger.

    Raises:
        Missing: the kernel, or the agent, cannot be had here.
    """
    busybox = Path(require_tool("busybox"))
    if b"ld-linux" in busybox.read_bytes()[:4096]:
        raise Missing(f"{busybox} needs shared libraries: install the package busybox-static")
    root = folder / "root"
    (root / "bin").mkdir(parents=True)
    shutil.copy(busybox, root / "bin" / "busybox")
    (root / "seed").write_bytes(seed())
    kernel = _kernel()
    shutil.copytree(_modules_of(kernel), root / "modules")
    lists = {"MODULES": MODULES, "FILE_SYSTEM": FILE_SYSTEM}
    text = INIT.read_text()
    for name, modules in lists.items():
        there = [module for module in modules if (root / "modules" / f"{module}.ko").exists()]
        text = text.replace(f"in {name};", f"in {' '.join(there)};")
    (root / "init").write_text(text)
    (root / "init").chmod(0o755)
    if agent:
        put_guest_agent(root, CACHE)
    names = "\n".join(str(path.relative_to(root)) for path in root.rglob("*"))
    cpio = [require_tool("cpio"), "--create", "--format=newc", "--quiet"]
    initrd = folder / "initrd"
    with initrd.open("wb") as archive:
        subprocess.run(cpio, input=names.encode(), stdout=archive, cwd=root, check=True)
    return LinuxGuest(kernel=kernel, initrd=initrd)


def _kernel() -> Path:
    """The newest kernel in the cache, with its modules, fetched if there is none."""
    if found := sorted(each for each in CACHE.glob("vmlinux-*") if _has_modules(each)):
        return found[-1]
    try:
        depends = run_tool("apt-cache", "depends", "linux-image-amd64")
        name = re.search(r"Depends: (linux-image-\S+)", depends)
        if name is None:
            raise Missing("no kernel package is known here: run apt-get update")
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            fresh = Path(folder) / "vmlinux"
            files = _unpack([download(each, Path(folder)) for each in (name[1], *_parts(name[1]))])
            fresh.write_bytes(_uncompressed(files.pop("vmlinuz")))
            kernel = CACHE / name[1].replace("linux-image", "vmlinux")
            modules = Path(folder) / "modules"
            modules.mkdir()
            for module, contents in files.items():
                (modules / module).write_bytes(contents)
            if not _has_modules(kernel):
                shutil.rmtree(_modules_of(kernel), ignore_errors=True)
                os.replace(modules, _modules_of(kernel))
            os.replace(fresh, kernel)
            return kernel
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", "") or error
        raise Missing(f"Debian's kernel package cannot be fetched: {said}") from error


def _modules_of(kernel: Path) -> Path:
    """Where the modules of a kernel are in the cache."""
    return kernel.with_name(kernel.name.replace("vmlinux", "modules"))


def _has_modules(kernel: Path) -> bool:
    folder = _modules_of(kernel)
    built_in = folder / BUILT_IN
    names = [path.name for path in folder.glob("*.ko")]
    return not _lacking(names, built_in.read_text() if built_in.exists() else "")


def _lacking(names: Collection[str], built_in: str) -> set[str]:
    """Modules that a kernel neither comes with, as ``NAME.ko``, nor has built in."""
    inside = {Path(line).stem for line in built_in.splitlines()}
    return {each for each in WANTED if f"{each}.ko" not in names and not {each, INSTEAD.get(each, each)} & inside}


def _parts(package: str) -> list[str]:
    """Packages that a kernel is divided into (Debian from forky on)."""
    return re.findall(r"Depends: (linux-(?:base|binary|modules)-\d\S+)", run_tool("apt-cache", "depends", package))


def _unpack(packages: Sequence[Path]) -> dict[str, bytes]:
    """The kernel in some packages, ``vmlinuz``, its modules, ``NAME.ko``, and which of them are built in."""
    found: dict[str, bytes] = {}
    for package in packages:
        _unpack_one(package, found)
    if lacking := _lacking(found, found.get(BUILT_IN, b"").decode()) | ({"vmlinuz"} - found.keys()):
        raise Missing(f"{packages[0].name} and what it depends on lack {', '.join(sorted(lacking))}")
    return found


def _unpack_one(package: Path, found: dict[str, bytes]) -> None:
    """What comes behind the last of them is not even read."""
    wanted = {"vmlinuz", *(f"{module}.ko" for module in WANTED)}
    unpack = ["dpkg", "--fsys-tarfile", str(package)]
    with (
        subprocess.Popen(unpack, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as dpkg,
        tarfile.open(fileobj=dpkg.stdout, mode="r|") as archive,
    ):
        for member in archive:
            name = Path(member.name).name.partition("-")[0].removesuffix(".xz")
            if name in {*wanted, BUILT_IN} and (data := archive.extractfile(member)):
                contents = data.read()
                found[name] = lzma.decompress(contents) if member.name.endswith(".xz") else contents
            if wanted <= found.keys():
                return


def _uncompressed(bzimage: bytes) -> bytes:
    """The ELF kernel, which QEMU starts through its PVH entry: unpacking itself would be the longest part of a boot."""
    setup = (bzimage[SETUP_SECTORS_AT] + 1) * 512
    offset, length = struct.unpack_from("<II", bzimage, PAYLOAD_AT)
    try:
        return lzma.LZMADecompressor().decompress(bzimage[setup + offset :][:length])
    except lzma.LZMAError:
        return bzimage
