"""RamFiles: guest RAM given as files, such as the shared memory of a paused virtual machine."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import NoReturn, Self

from parallel_fixedram.core.errors import HostError, MachineError
from parallel_fixedram.core.protocols import DirtySource, GuestBlock
from parallel_fixedram.core.ramblock import RAMBlock, check_idstr, check_unique
from parallel_fixedram.host.memory.ram_file import open_ram_file


@dataclass(frozen=True, slots=True, kw_only=True)
class RamFile:
    """One RAMBlock and the file, or the part of a file, that is its memory."""

    idstr: str
    path: str
    offset: int = 0
    """Where the block starts in the file, bytes, a multiple of its page size."""
    length: int | None = None
    """Bytes of the block; None for the rest of the file."""


class RamFiles:
    """A Machine that is nothing but RAM: it cannot be paused, and whoever asks for a save makes sure it stands still.

    Args:
        files: the blocks, in the order in which the file shall list them.
        name: machine name for the file.

    Attributes:
        target: none, this is only RAM.

    Raises:
        HostError: a file cannot be opened.
        RequestError: a file, a name or a length that cannot be a RAMBlock.
    """

    def __init__(self, files: Sequence[RamFile], *, name: str) -> None:
        self.name = name
        self.target = ""
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

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

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

    def get_ready(self) -> None:
        """Nothing runs here (Machine.get_ready)."""

    def sync_disks(self) -> Sequence[str]:
        """There are no disks (Machine.sync_disks)."""
        return ()

    def pause(self) -> bool:
        """Nothing runs here (Machine.pause)."""
        return False

    def resume(self) -> None:
        """Nothing runs here (Machine.resume)."""

    def look_again(self) -> bool:
        """The blocks are those that were given (Machine.look_again)."""
        return False

    def device_state(self) -> bytes:
        """There are no devices (Machine.device_state)."""
        return b""

    def dirty_source(self) -> DirtySource | None:
        """Nobody keeps track of writes (Machine.dirty_source)."""
        return None

    def address_space(self) -> NoReturn:
        """Whose memory it is, nobody knows (Machine.address_space)."""
        raise MachineError("files of RAM do not tell which process writes them")

    def close(self) -> None:
        """Close the files (Machine.close)."""
        self._stack.close()
