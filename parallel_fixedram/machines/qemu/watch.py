"""How the writes of a running QEMU can be made to wait: by a userfaultfd of its process, which it is made to ask for.

That is the one thing that we do to QEMU's process itself (``host/injection``), and whoever runs it may forbid it: by
the environment of the command, or for everybody on the host.
"""

from __future__ import annotations

import os

from parallel_fixedram.core.errors import HostError, MachineError
from parallel_fixedram.core.protocols import AddressSpace
from parallel_fixedram.core.ramblock import MOST_COPIED_BYTES
from parallel_fixedram.host.injection.inject import require_right, takes_injection, userfaultfd_of
from parallel_fixedram.host.memory.process_maps import refusal, takes_protection
from parallel_fixedram.machines.qemu.discovery import Makeup, run_state
from parallel_fixedram.machines.qemu.fdset import FdSet
from parallel_fixedram.machines.qemu.monitor import Monitor
from parallel_fixedram.machines.qemu.trials import Setting
from parallel_fixedram.machines.qemu.unwatched import Merging, refuse_unwatched

VARIABLE = "PARALLEL_FIXEDRAM_INJECTION"
"""If set to ``never``, this command injects no code."""

FORBIDDEN = "/etc/parallel-fixedram/no-injection"
"""If this file exists, nobody injects any on this host."""


def address_space(monitor: Monitor, pid: int, found: Makeup) -> AddressSpace:
    """What a snapshot needs of a QEMU; nothing is done to it yet.

    Args:
        monitor: of the QEMU; asked for nothing else while ``watch`` or ``has_answered`` is called.
        pid: its process.
        found: what it is made of.

    Raises:
        MachineError: what the machine is made of forbids it, or it has ended.
        HostError: it is forbidden, or a right or the kernel is missing.
    """
    refuse_if_forbidden()
    if "qemu" not in (program := _program_of(pid)):
        raise MachineError(f"process {pid} runs {program!r}, which may not be QEMU: nothing is done to it")
    refuse_unwatched(monitor, found)
    _refuse_unprotectable(pid, found)
    merging = Merging(pid, found)
    merging.refuse()
    if reason := takes_injection(pid):
        raise HostError(reason)
    require_right(pid)

    def has_answered() -> None:
        run_state(monitor)
        merging.refuse()

    return AddressSpace(
        watch=lambda: (_userfaultfd(monitor, pid), [block.address for block in found.blocks]),
        has_answered=has_answered,
        unproven=setting(monitor).unproven,
    )


def _program_of(pid: int) -> str:
    try:
        return os.path.basename(os.readlink(f"/proc/{pid}/exe"))
    except OSError as error:
        raise refusal(pid, error, f"cannot see what process {pid} runs") from error


def refuse_if_forbidden() -> None:
    """Return if whoever runs this host, or this command, allows it.

    Raises:
        HostError: says by what it is forbidden.
    """
    if os.environ.get(VARIABLE) == "never":
        raise HostError(f"{VARIABLE}=never forbids asking QEMU's process for a userfaultfd")
    if os.path.exists(FORBIDDEN):
        raise HostError(f"{FORBIDDEN!r} forbids asking QEMU's process for a userfaultfd")


def _refuse_unprotectable(pid: int, found: Makeup) -> None:
    for block in found.blocks:
        if block.used_length > MOST_COPIED_BYTES and not takes_protection(pid, block.address, block.used_length):
            raise HostError(
                f"block {block.idstr!r} is a file on a disk: this memory cannot be write-protected",
                hint="a memory-backend-memfd can be, and a mem-path on tmpfs or hugetlbfs",
            )


def setting(monitor: Monitor) -> Setting:
    """What a snapshot of this QEMU has to work with."""
    answer = monitor.execute("query-kvm")
    if not isinstance(answer, dict) or not isinstance(answer.get("enabled"), bool):
        raise monitor.malformed("query-kvm", answer)
    return Setting(qemu=".".join(map(str, monitor.version)), kvm=answer["enabled"])


def _userfaultfd(monitor: Monitor, pid: int) -> int:
    with FdSet(monitor) as handed_over:

        def hand_over(device: int) -> int:
            handed_over.add(device)
            return handed_over.number_in_qemu()

        return userfaultfd_of(pid, hand_over=hand_over).detach()
