"""What killed commands and power cuts have left in a folder, and what became of it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar


class Kind(StrEnum):
    """What a thing is."""

    PART = "part"
    """A file that never got its name."""
    OVERLAY = "overlay"
    """A qcow2 image that a guest's disk goes on with, or was to."""
    RUN_FOLDER = "run-folder"
    """Sockets, logs and pids of guests that a command has started."""
    LINK = "link"
    """What leads to a run folder, or did."""
    TEMPORARY = "temporary"
    """A folder with files that nobody wants to keep."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Leftover:
    """A thing of ours in the folder."""

    path: str
    kind: Kind
    what: str
    """A few words."""
    held: bool
    """Whether it belongs to a process that lives: it is not left behind, and never removed."""
    removed: bool
    why_not: str
    """Why it cannot be removed, or must not; empty if it can be, or was."""

    @property
    def is_left(self) -> bool:
        """Whether nobody holds it, and it is still there."""
        return not (self.held or self.removed)


@dataclass(frozen=True, slots=True, kw_only=True)
class CleanReport:
    """Things of ours in a folder."""

    verb: ClassVar[str] = "clean"
    schema: ClassVar[str] = "clean"

    folder: str
    ok: bool
    """Whether nothing is left there now."""
    found: tuple[Leftover, ...]
    """By path."""
