"""Domains of a real libvirt: started, waited for by their serial line, ended; and a libvirtd where none is running."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from xml.sax.saxutils import escape

from support.qemu_boot import wait_end
from support.qemu_linux import LinuxGuest
from support.qemu_serial import Serial
from support.qemu_tools import machine_type, missing, require_qemu, require_tool, with_own_mounts

URI = "qemu:///system"
MIB = 1 << 20
CONFIGURATION = Path("/etc/libvirt/qemu.conf")
PID_FILE = Path("/run/libvirtd.pid")
SETTINGS = """
user = "root"
group = "root"
security_driver = "none"
cgroup_controllers = []
namespaces = []
remember_owner = 0
stdio_handler = "file"
"""
"""For a host without systemd, and folders that belong to the tests."""
OLDEST = (11, 2)
"""The first version whose save images can be sparse."""
SHARED = "<memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>"
_numbers = itertools.count(1)


def virsh(*arguments: str | Path, environment: dict[str, str] | None = None) -> str:
    """What a virsh command says; AssertionError with what it said if it fails."""
    ended = try_virsh(*arguments, environment=environment)
    assert ended.returncode == 0, f"{' '.join(ended.args)}: {ended.stderr}"
    return ended.stdout.strip()


def try_virsh(*arguments: str | Path, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """How a virsh command ended."""
    command = [require_tool("virsh"), "--connect", URI, *map(str, arguments)]
    environment = {**os.environ, "LC_ALL": "C.UTF-8", **(environment or {})}
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, env=environment)


@contextmanager
def libvirtd(folder: Path) -> Iterator[None]:
    """A libvirtd that answers: the one that runs, or one of our own with a configuration for tests."""
    require_tool("virsh")
    require_tool("libvirtd")
    require_qemu()
    if os.geteuid():
        missing("domains of the system's libvirt are root's")
    own = not _answers()
    if own:
        configuration = folder / "qemu.conf"
        configuration.write_text(SETTINGS)
        start = f'mount --bind "$0" {CONFIGURATION} && exec libvirtd --daemon'
        subprocess.run([*with_own_mounts(), "sh", "-c", start, str(configuration)], check=True, timeout=60)
    elif not set(SETTINGS.split("\n")) <= set(CONFIGURATION.read_text().split("\n")):
        missing("a libvirtd is running here that is not configured for tests")
    try:
        version = tuple(int(each) for each in virsh("--version").split(".")[:2])
        if version < OLDEST:
            missing(f"libvirt {version[0]}.{version[1]} has no sparse images: install libvirt 11.2 or later")
        yield
    finally:
        if own:
            pidfd = os.pidfd_open(int(PID_FILE.read_text()))
            signal.pidfd_send_signal(pidfd, signal.SIGTERM)
            wait_end(pidfd)
            os.close(pidfd)


def _answers() -> bool:
    return try_virsh("uri").returncode == 0


class Domain:
    """Context manager: a transient domain, which is not started yet, and is ended.

    Args:
        folder: for its serial line.
        linux: what it boots; nothing if not given: start it paused.
        memory: bytes of RAM; 192 MiB are the least for Linux.
        backing: memoryBacking of its XML.
        devices: more devices.
    """

    def __init__(
        self,
        folder: Path,
        linux: LinuxGuest | None = None,
        *,
        memory: int = 192 * MIB,
        vcpus: int = 1,
        backing: str = "",
        devices: str = "",
        arguments: str = "",
    ) -> None:
        self.name = f"parallel-fixedram-test-{os.getpid()}-{next(_numbers)}"
        self.serial = Serial(folder)
        self.xml = f"""
<domain type='qemu'>
  <name>{self.name}</name>
  <memory unit='b'>{memory}</memory>
  {backing}
  <vcpu>{vcpus}</vcpu>
  <os><type arch='x86_64' machine='{machine_type("q35")}'>hvm</type>{_boot(linux, arguments)}</os>
  <features><acpi/></features>
  <cpu mode='maximum'/>
  <on_poweroff>destroy</on_poweroff>
  <on_reboot>destroy</on_reboot>
  <on_crash>destroy</on_crash>
  <devices>
    <emulator>{require_qemu()}</emulator>
    <serial type='pipe'><source path='{self.serial.path}'/></serial>
    <memballoon model='none'/>
    {devices}
  </devices>
</domain>
"""
        self._description = folder / "domain.xml"

    def __enter__(self) -> Domain:
        return self

    def __exit__(self, *_: object) -> None:
        self.destroy()
        self.serial.close()

    @property
    def state(self) -> str:
        """What libvirt says it does."""
        return virsh("domstate", self.name)

    @property
    def alive(self) -> bool:
        """Whether libvirt has it."""
        return self.name in virsh("list", "--name").split()

    @property
    def pid(self) -> int:
        """Of its QEMU."""
        return int(Path(f"/run/libvirt/qemu/{self.name}.pid").read_text())

    def command_line(self) -> list[str]:
        """Of its QEMU, without what only libvirt has: its monitor, its secrets, its sandbox, and the order to wait."""
        program, *words = Path(f"/proc/{self.pid}/cmdline").read_bytes().decode().split("\0")[:-1]
        line = [program]
        while words:
            option = words.pop(0)
            value = [words.pop(0)] if words and not words[0].startswith("-") else []
            if option not in ("-S", "-mon", "-sandbox", "-msg") and not any(
                word in each for each in value for word in ("charmonitor", "masterKey0")
            ):
                line += [option, *value]
        return line

    def start(self, *options: str) -> None:
        """Create it; ``--paused`` does not let it run."""
        self._description.write_text(self.xml)
        virsh("create", self._description, *options)

    def destroy(self) -> None:
        """End it, if it is there."""
        if self.alive:
            virsh("destroy", self.name)

    def wait(self, pattern: str, timeout: float = 100.0) -> str:
        """Wait for something on its serial line; returns the first group."""
        pidfd = os.pidfd_open(self.pid)
        try:
            return self.serial.wait(pattern, timeout, pidfd)[1]
        finally:
            os.close(pidfd)

    def tick(self) -> tuple[int, str]:
        """Its next tick: the number, and the check sum of its known file."""
        number = int(self.wait(r"tick (\d+) "))
        return number, self.wait(r"(\w{32})\r")


def _boot(linux: LinuxGuest | None, arguments: str) -> str:
    if linux is None:
        return ""
    words = linux.args(more=arguments)
    kernel, initrd, line = (escape(words[words.index(option) + 1]) for option in ("-kernel", "-initrd", "-append"))
    return f"<kernel>{kernel}</kernel><initrd>{initrd}</initrd><cmdline>{line}</cmdline>"
