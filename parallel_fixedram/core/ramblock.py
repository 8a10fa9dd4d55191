"""RAMBlock and PageRange: the two values that everything else is about."""

from __future__ import annotations

from dataclasses import dataclass

from parallel_fixedram.core.errors import RequestError

TARGET_PAGE_SIZE = 4096
"""Target page size of x86 in bytes: the unit of every bitmap and of the page area (QEMU: TARGET_PAGE_SIZE)."""

MOST_COPIED_BYTES = 8 << 20
"""Most bytes of a block whose writes cannot be made to wait, in a snapshot: copying them adds a few milliseconds to
the pause."""

MAX_IDSTR = 255
"""Longest idstr in bytes: its length is one byte in the stream (QEMU: qemu_put_counted_string)."""


@dataclass(frozen=True, slots=True)
class PageRange:
    """Pages ``first`` (inclusive) to ``first + count`` (exclusive) of one RAMBlock."""

    first: int
    """First page, counted from the start of the block."""
    count: int
    """Number of pages, at least 1 where the range is not explicitly empty."""

    @property
    def end(self) -> int:
        """The page after the last one."""
        return self.first + self.count


@dataclass(frozen=True, slots=True, kw_only=True)
class RAMBlock:
    """A named piece of guest RAM, as QEMU's RAMBlock (include/exec/ramblock.h).

    Raises:
        RequestError: an idstr QEMU could not carry, or lengths that are not whole pages.
    """

    idstr: str
    """Name, unique in a machine: 1 to 255 printable ASCII characters."""
    used_length: int
    """Bytes in use: what is saved. A positive multiple of ``page_size`` and of ``host_page_size``."""
    max_length: int = 0
    """Bytes the block may grow to; 0 means ``used_length``. Nothing in the file depends on it."""
    page_size: int = TARGET_PAGE_SIZE
    """Target page size in bytes: what one bit of a bitmap stands for."""
    host_page_size: int = TARGET_PAGE_SIZE
    """Page size of the memory behind the block in bytes: more than ``page_size`` on huge pages."""

    def __post_init__(self) -> None:
        check_idstr(self.idstr)
        if self.used_length <= 0:
            raise RequestError(f"block {self.idstr!r}: used_length must be positive, got {self.used_length}")
        for name, unit in (("page size", self.page_size), ("host page size", self.host_page_size)):
            if self.used_length % unit:
                raise RequestError(
                    f"block {self.idstr!r}: size {self.used_length} is not a multiple of its {name} {unit}"
                )
        if self.max_length == 0:
            object.__setattr__(self, "max_length", self.used_length)
        if self.max_length < self.used_length:
            raise RequestError(
                f"block {self.idstr!r}: max_length {self.max_length} is below used_length {self.used_length}"
            )

    @property
    def pages(self) -> int:
        """Number of target pages in use."""
        return self.used_length // self.page_size


def check_idstr(idstr: str) -> None:
    """Accept what can stand as a block name in a stream.

    Raises:
        RequestError: empty, over 255 bytes, or not printable ASCII.
    """
    if not idstr:
        raise RequestError("block name is empty")
    if len(idstr) > MAX_IDSTR:
        raise RequestError(f"block name {idstr[:16]!r}... is {len(idstr)} characters long, at most {MAX_IDSTR} fit")
    if not (idstr.isascii() and idstr.isprintable()):
        raise RequestError(f"block name {idstr!r} is not printable ASCII")


def check_unique(blocks: list[RAMBlock]) -> None:
    """Accept a machine's list of blocks.

    Raises:
        RequestError: no block at all, or two blocks of one name.
    """
    if not blocks:
        raise RequestError("no RAMBlock to save")
    seen: set[str] = set()
    for block in blocks:
        if block.idstr in seen:
            raise RequestError(f"two blocks are named {block.idstr!r}")
        seen.add(block.idstr)
