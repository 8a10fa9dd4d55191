"""Refuse guest memory that another process cannot read, or that no QEMU can load again, before anything is touched.

Source: QEMU hw/core/machine.c (confidential-guest-support), backends/hostmem.c and hostmem-file.c (readonly, rom).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from parallel_fixedram.core.errors import MachineError
from parallel_fixedram.machines.qemu.discovery import QemuBlock, children

if TYPE_CHECKING:
    from parallel_fixedram.machines.qemu.monitor import Monitor


def refuse_unreachable_memory(monitor: Monitor, blocks: Sequence[QemuBlock]) -> None:
    """Refuse a guest whose memory cannot be read from outside, or cannot be loaded again.

    Args:
        monitor: of the QEMU.
        blocks: its RAMBlocks.

    Raises:
        MachineError: it cannot; the message says why.
    """
    support = _property(monitor, "/machine", "confidential-guest-support", str)
    if support:
        raise MachineError(f"the guest is confidential ({support!r}): its memory cannot be read from outside")
    for name, kind in children(monitor, "/objects"):
        if kind.startswith("memory-backend-") and _is_guest_memfd(monitor, f"/objects/{name}", kind):
            raise MachineError(f"{kind} {name!r} is guest-memfd: its memory cannot be read from outside")
    for block in blocks:
        if block.read_only:
            raise MachineError(
                f"block {block.idstr!r} is read-only memory (readonly=on), which no QEMU can load from a file",
                hint="readonly=on,share=off,rom=off gives the guest a private copy instead, which can be saved",
            )


def _is_guest_memfd(monitor: Monitor, path: str, kind: str) -> bool:
    """Whether the backend is guest-memfd, by its type or its property; QEMU 10.0 has neither."""
    if kind == "memory-backend-guest-memfd":
        return True
    names = {name for name, _ in children(monitor, path, of_type="bool")}
    return "guest-memfd" in names and bool(_property(monitor, path, "guest-memfd", bool))


def _property(monitor: Monitor, path: str, name: str, kind: type[Any]) -> Any:
    answer = monitor.execute("qom-get", {"path": path, "property": name})
    if not isinstance(answer, kind):
        raise monitor.malformed("qom-get", answer)
    return answer
