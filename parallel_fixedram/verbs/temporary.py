"""A folder for files that nobody wants to keep."""

from __future__ import annotations

import tempfile

from parallel_fixedram.core.errors import HostError, unopened


def temporary_folder(where: str | None) -> tempfile.TemporaryDirectory[str]:
    """A new folder with mode 0700, gone with all that is in it at the end of a ``with``.

    Args:
        where: the folder that it is made in; None for where temporary files go.

    Raises:
        NoFileError: there is no such folder.
        HostError: none can be made there.
    """
    try:
        return tempfile.TemporaryDirectory(prefix="parallel-fixedram-", dir=where)
    except OSError as error:
        if where is None:
            raise HostError.from_os("cannot make a folder for temporary files", error) from error
        raise unopened(f"cannot make a folder in {where!r}", error) from error
