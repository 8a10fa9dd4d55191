""".part files in a folder: left by saves and restores that were killed, or being written right now."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

from parallel_fixedram.core.reports.clean import Kind, Leftover
from parallel_fixedram.core.units import format_size
from parallel_fixedram.host.files.left_file import files_in, judged

_NAME = re.compile(r"\.(.+)\.part", re.DOTALL)
_BY_OTHERS = 0o077


def left_parts(path: str, folder: int, *, remove: bool) -> Iterator[Leftover]:
    """A finding for each. A file that others may read is not one of ours, whatever its name.

    Args:
        path: the folder.
        folder: descriptor of the folder.
        remove: whether to remove those that nobody is writing.

    Raises:
        OSError: the folder cannot be read.
    """
    for name, status in files_in(folder, _NAME.fullmatch):
        if status.st_mode & _BY_OTHERS:
            continue
        final = _NAME.sub(r"\1", name)
        found = Leftover(
            path=os.path.join(path, name),
            kind=Kind.PART,
            what=f"unfinished {final!r}, {format_size(status.st_blocks * 512)} on disk",
            held=False,
            removed=False,
            why_not="",
        )
        if told := judged(found, name, folder, remove=remove, locked=True):
            yield told
