"""How guests are started from a file, as far as that is an option."""

from __future__ import annotations

from dataclasses import dataclass

from parallel_fixedram.core.errors import RequestError


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskChoice:
    """What the disks of guests are that are started from a file.

    Attributes:
        overlays: whether each guest gets overlays of its own on the images that the file records, rather than the disks
            that the command line names; None for yes if it records any.
        folder: where overlays go, and stay; None for the guests' run folders, with which they go.

    Raises:
        RequestError: a folder, and nothing to go there.
    """

    overlays: bool | None = None
    folder: str | None = None

    def __post_init__(self) -> None:
        if self.folder is not None and self.overlays is False:
            raise RequestError("a folder for overlays, and no overlays")
