"""RamFiles: guest RAM given as files, such as the shared memory of a paused virtual machine."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import NoReturn

from parallel_fixedram.core.entering import Closing
from parallel_fixedram.core.errors import HostError, MachineError
from parallel_fixedram.core.protocols import DirtySource, GuestBlock
from parallel_fixedram.core.ramblock import RAMBlock, check_idstr, check_unique
from parallel_fixedram.host.memory.ram_file import open_ram_file
from parallel_fixedram.machines.ram_only import RamOnly


@dataclass(frozen=True, slots=True, kw_only=True)
class RamFile:
    """One RAMBlock and the file, or the part of a file, that is its memory."""

    idstr: str
    path: str
    offset: int = 0
    """Where the block starts in the file, bytes, a multiple of its page size."""
    length: int | None = None
    """Bytes of the block; None for the rest of the file."""


class RamFiles(RamOnly, Closing):
    """A Machine that is nothing but RAM. It cannot be paused; the caller makes sure that nobody writes to it.

    Args:
        files: the blocks, in the order in which the file lists them.
        name: machine name for the file.

    Raises:
        HostError: a file cannot be opened.
        RequestError: a file, name or length is not suitable for a RAMBlock.
    """

    def __init__(self, files: Sequence[RamFile], *, name: str) -> None:
        self.name = name
        self._files = tuple(files)
        self._blocks: list[GuestBlock] = []
        for each in files:
            check_idstr(each.idstr)
        with ExitStack() as stack:
            for each in files:
                source, length, host_page_size = open_ram_file(each.path, offset=each.offset, length=each.length)
                stack.callback(source.close)
                block = RAMBlock(idstr=each.idstr, used_length=length, host_page_size=host_page_size)
                self._blocks.append(GuestBlock(block=block, source=source))
            check_unique([each.block for each in self._blocks])
            self._stack = stack.pop_all()

    def holds(self, path: str) -> bool:
        """Whether ``path`` is one of the files (Machine.holds)."""
        try:
            return any(os.path.samefile(path, each.path) for each in self._files)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise HostError.from_os(f"cannot look at {path!r}", error) from error

    def guest_blocks(self) -> Sequence[GuestBlock]:
        """The blocks as given (Machine.guest_blocks)."""
        return self._blocks

    def is_running(self) -> bool:
        """Nothing runs here (Machine.is_running)."""
        return False

    def pause(self) -> bool:
        """Nothing runs here (Machine.pause)."""
        return False

    def resume(self) -> None:
        """Nothing runs here (Machine.resume)."""

    def dirty_source(self) -> DirtySource | None:
        """Nobody keeps track of writes (Machine.dirty_source)."""
        return None

    def address_space(self) -> NoReturn:
        """Not possible: we do not know which processes write to the files (Machine.address_space)."""
        raise MachineError("files of RAM do not say which process writes to them")

    def close(self) -> None:
        """Close the files (Machine.close)."""
        self._stack.close()
