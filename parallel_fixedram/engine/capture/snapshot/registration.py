"""Register a guest's blocks for protection."""

from __future__ import annotations

from collections.abc import Sequence

from parallel_fixedram.core.errors import HostError
from parallel_fixedram.core.ramblock import MOST_COPIED_BYTES, RAMBlock
from parallel_fixedram.host.memory.userfaultfd import Userfaultfd


def register(userfaultfd: Userfaultfd, blocks: Sequence[RAMBlock], addresses: Sequence[int | None]) -> list[int | None]:
    """Register blocks with a userfaultfd.

    Args:
        userfaultfd: of the guest's process, enabled.
        blocks: what to protect.
        addresses: where each starts in that process; None for one that shall not be protected.

    Returns:
        The addresses, with None for small blocks that cannot be protected: they are written while the guest stands
        still.

    Raises:
        HostError: a block cannot be protected, and is too large for that.
        MachineError: the process has ended.
    """
    found = list(addresses)
    for number, (block, address) in enumerate(zip(blocks, addresses, strict=True)):
        if address is not None:
            try:
                userfaultfd.register(address, block.used_length)
            except HostError:
                if block.used_length > MOST_COPIED_BYTES:
                    raise
                found[number] = None
    return found
