"""LibvirtGuest: a transient domain of the libvirt that runs here, whose boot sector fills its RAM (QemuGuest).

::

    runner -- virsh --> libvirtd --> QEMU -- serial: RAM is full --> file

It is ended when the block is left, or by a guardian when this process is.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import re
import shutil
import subprocess
import time
from types import TracebackType
from typing import Self
from xml.sax.saxutils import quoteattr

from parallel_fixedram.core.errors import HostError, MachineError
from parallel_fixedram.experiments import boot_sector, tools
from parallel_fixedram.experiments.parameters import QemuSpec
from parallel_fixedram.host.processes import signals
from parallel_fixedram.host.processes.guardian import Guardian
from parallel_fixedram.verbs.temporary import temporary_folder

URI = "qemu:///system"
OLDEST_LIBVIRT = (11, 2)
"""The first version whose save images can be sparse."""

_BOOT_SECONDS = 30.0
_FILL_RATE = 20 << 20
_POLL_SECONDS = 0.02
_MEMORY = {
    "private": "",
    "memfd": "<memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>",
    "huge": "<memoryBacking><hugepages/><source type='memfd'/><access mode='shared'/></memoryBacking>",
}
_numbers = itertools.count(1)


def virsh(*arguments: str) -> str:
    """What a command of virsh's prints.

    Raises:
        HostError: it fails.
        tools.Missing: it is not installed.
    """
    environment = {**os.environ, "LC_ALL": "C.UTF-8"}
    return tools.run([tools.find("virsh"), "--connect", URI, *arguments], environment=environment).strip()


@functools.cache  # asked for each case, and each time a process
def why_no_libvirt() -> str | None:
    """Why there can be no domain here; None if there can."""
    if os.geteuid() != 0:
        return "domains of the system's libvirt are root's"
    try:
        said = virsh("version", "--daemon")
    except tools.Missing as error:
        return error.message
    except HostError:
        return f"no libvirtd answers at {URI}: start one"
    match = re.search(r"daemon: (\d+)\.(\d+)", said)
    if match is None or (int(match[1]), int(match[2])) < OLDEST_LIBVIRT:
        return f"libvirt {'.'.join(match.groups()) if match else 'of unknown version'} has no sparse images, 11.2 has"
    return None


class LibvirtGuest:
    """A context manager; inside, the guest has filled its RAM.

    Args:
        spec: its RAM.
        seed: of what it fills it with.

    Attributes:
        spec: the same.
        name: of the domain.

    Raises:
        tools.Missing: no virsh, or no QEMU with mapped-ram.
        HostError: libvirt does not start it.
        MachineError: its guest does not fill its RAM.
    """

    def __init__(self, spec: QemuSpec, *, seed: int = 1) -> None:
        self.spec = spec
        self.name = f"parallel-fixedram-bench-{os.getpid()}-{next(_numbers)}"
        self._seed = seed
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            with signals.held():
                self._folder = stack.enter_context(temporary_folder(None))
            os.chmod(self._folder, 0o711)  # QEMU may be another user's
            guardian = stack.enter_context(Guardian(lambda: _end(self.name, self._folder)))
            guardian.arm()
            stack.callback(guardian.disarm)
            stack.callback(_end, self.name, None)
            with open(self._path("image"), "wb") as image:
                image.write(self.spec.boot_image(self._seed))
            with open(self._path("domain.xml"), "w", encoding="utf-8") as file:
                file.write(self._xml())
            virsh("create", self._path("domain.xml"))
            self._wait_full()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def stands_still(self) -> bool:
        """Whether no page changes any more although it runs."""
        return not self.spec.dirty_rate

    def state(self) -> str:
        """What libvirt says that it does.

        Raises:
            HostError: libvirt does not have it.
        """
        return virsh("domstate", self.name)

    def _path(self, name: str) -> str:
        return os.path.join(self._folder, name)

    def _xml(self) -> str:
        return f"""
<domain type='qemu'>
  <name>{self.name}</name>
  <memory unit='b'>{self.spec.size}</memory>
  {_MEMORY[self.spec.ram]}
  <vcpu>1</vcpu>
  <os><type arch='x86_64' machine='pc'>hvm</type><boot dev='fd'/></os>
  <features><acpi/></features>
  <on_poweroff>destroy</on_poweroff>
  <on_reboot>destroy</on_reboot>
  <on_crash>destroy</on_crash>
  <devices>
    <emulator>{tools.find_qemu()}</emulator>
    <serial type='file'><source path={quoteattr(self._path("serial"))} append='on'/></serial>
    <memballoon model='none'/>
    <disk type='file' device='floppy'>
      <source file={quoteattr(self._path("image"))}/><target dev='fda'/><readonly/>
    </disk>
  </devices>
</domain>
"""

    def _wait_full(self) -> None:
        """Wait for the letter."""
        seconds = _BOOT_SECONDS + self.spec.data_bytes / _FILL_RATE
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            with contextlib.suppress(FileNotFoundError), open(self._path("serial"), "rb") as serial:
                if boot_sector.FILLED.encode() in serial.read():
                    return
            time.sleep(_POLL_SECONDS)
        raise MachineError(f"the domain's guest has not filled its RAM within {seconds:.0f} s")


def _end(name: str, folder: str | None) -> None:
    """End the domain if it is there; runs in the guardian, too, which removes what it had."""
    command = ["virsh", "--connect", URI, "destroy", name]
    subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if folder:
        shutil.rmtree(folder, ignore_errors=True)
