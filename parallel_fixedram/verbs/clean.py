"""``clean``: find what killed commands and power cuts have left in a folder, and remove it if that is safe."""

from __future__ import annotations

import os

from parallel_fixedram.boot.left_folders import left_folders
from parallel_fixedram.boot.left_overlays import left_overlays
from parallel_fixedram.core.errors import HostError, unopened
from parallel_fixedram.core.reports.clean import CleanReport
from parallel_fixedram.host import linux
from parallel_fixedram.host.files.left_parts import left_parts
from parallel_fixedram.verbs.temporary import left_temporary


def clean(folder: str, *, remove: bool = False) -> CleanReport:
    """Look for what this user's saves, restores, clones, demos and trials left in a folder when they were killed.

    Subfolders are not searched, and links are not followed. What a live process uses is listed as such, and never
    removed; nor are overlays with contents.

    Args:
        folder: where to look.
        remove: whether to remove what is left; otherwise nothing is changed.

    Raises:
        NoFileError: there is no such folder.
        HostError: it cannot be read, or the system does not tell which processes are alive.
    """
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise unopened(f"cannot open the folder {folder!r}", error) from error
    try:
        found = [
            *left_parts(folder, fd, remove=remove),
            *left_overlays(folder, fd, remove=remove),
            *left_folders(folder, remove=remove),
            *left_temporary(folder, remove=remove),
        ]
    except OSError as error:
        raise HostError.from_os(f"cannot read the folder {folder!r}", error) from error
    finally:
        linux.close(fd)
    found.sort(key=lambda each: each.path)
    return CleanReport(folder=folder, ok=not any(each.is_left for each in found), found=tuple(found))
