"""Memory: the RAMBlocks of a running QEMU, and how each is reached from outside."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from parallel_fixedram.core.errors import HostError
from parallel_fixedram.core.protocols import GuestBlock
from parallel_fixedram.host.memory.process_memory import ProcessMemory, open_process_memory
from parallel_fixedram.machines.qemu.discovery import Makeup, QemuBlock
from parallel_fixedram.machines.qemu.monitor import Monitor
from parallel_fixedram.machines.qemu.unreachable import refuse_unreachable_memory


@dataclass(frozen=True, slots=True, kw_only=True)
class ReachedBlock:
    """A RAMBlock and how its memory is reached."""

    block: QemuBlock
    memory: ProcessMemory


class Memory:
    """All RAMBlocks, in QEMU's order.

    Args:
        monitor: of the QEMU.
        pid: its process.
        found: what it is made of.

    Attributes:
        makeup: what it is made of.
        blocks: its RAMBlocks.

    Raises:
        MachineError: a block can be reached by nobody.
        HostError: its memory cannot be reached; says which right is missing.
    """

    def __init__(self, monitor: Monitor, pid: int, found: Makeup) -> None:
        refuse_unreachable_memory(monitor, found.blocks)
        self.makeup = found
        with ExitStack() as stack:
            self.blocks = tuple(reach(pid, block, stack) for block in found.blocks)
            self._stack = stack.pop_all()

    def guest_blocks(self) -> Sequence[GuestBlock]:
        """The blocks as the engine has them (Machine.guest_blocks)."""
        return [
            GuestBlock(
                block=each.block.ramblock(),
                source=each.memory.source,
                main=each.block.main,
                keeps_zero_pages=each.block.keeps_zero_pages,
            )
            for each in self.blocks
        ]

    def close(self) -> None:
        """Close all sources; may be called more than once."""
        self._stack.close()


def reach(pid: int, block: QemuBlock, stack: ExitStack) -> ReachedBlock:
    """Open the memory of one block, until the stack is closed.

    Raises:
        MachineError: the process has ended.
        HostError: it cannot be reached; the hint says which right is missing.
    """
    try:
        memory = open_process_memory(pid, block.address, block.used_length)
    except HostError as error:
        raise HostError(f"block {block.idstr!r}: {error.message}", hint=error.hint) from error
    stack.callback(memory.source.close)
    return ReachedBlock(block=block, memory=memory)
