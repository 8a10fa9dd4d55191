"""SharedMemory: memory that guests and we map, anonymous or a file, in the making."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Self

from parallel_fixedram.core.entering import undone_if_it_fails
from parallel_fixedram.core.errors import HostError
from parallel_fixedram.host import linux
from parallel_fixedram.host.files.publish import PendingFile, exists
from parallel_fixedram.host.processes import signals


class SharedMemory:
    """Context manager around pieces of shared memory; files made for it have their names only from ``keep`` on.

    Args:
        lengths: bytes of each piece, by name.
        paths: files for some of them, made with mode 0600; those that exist keep their length. Others are anonymous.

    Attributes:
        paths: where each piece is until then, by name; for anonymous ones only in processes that have ``descriptors``
            open.
        descriptors: what holds anonymous memory; closed at the end.

    Raises:
        HostError: a file cannot be made.
    """

    def __init__(self, lengths: Mapping[str, int], paths: Mapping[str, str]) -> None:
        self._lengths = lengths
        self._wanted = paths
        self._made: list[PendingFile] = []
        self.paths: dict[str, str] = {}
        self.descriptors: set[int] = set()

    @undone_if_it_fails
    def __enter__(self) -> Self:
        for name, length in self._lengths.items():
            with signals.held():
                self.paths[name] = (
                    self._file(os.path.abspath(self._wanted[name]), length)
                    if name in self._wanted
                    else self._anonymous(name, length)
                )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for fd in self.descriptors:
            linux.close(fd)
        for file in self._made:
            file.__exit__(kind, error, traceback)
        self.descriptors, self._made = set(), []

    @contextlib.contextmanager
    def keep(self) -> Iterator[None]:
        """Files get their names, all or none of them, and lose them again if the block fails: nobody lives in them.

        Raises:
            RequestError: somebody else has taken a name meanwhile.
            HostError: a name cannot be given.
        """
        try:
            for file in self._made:
                file.publish()
            yield
        except BaseException:
            for file in self._made:
                file.withdraw()
            raise

    def _anonymous(self, name: str, length: int) -> str:
        try:
            fd = os.memfd_create(f"guest-ram-{name}"[:200], os.MFD_CLOEXEC)
            self.descriptors.add(fd)
            os.ftruncate(fd, length)
        except OSError as error:
            raise HostError.from_os(f"cannot get {length} bytes of shared memory", error) from error
        return f"/proc/self/fd/{fd}"

    def _file(self, path: str, length: int) -> str:
        if exists(path):
            return path
        file = PendingFile(path, size=length)
        self._made.append(file.__enter__())
        return file.part
