"""SharedMemory: new shared memory for guests, anonymous or in files."""

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
    """Context manager around pieces of shared memory. New files get their names only from ``keep``.

    Args:
        lengths: bytes of each piece, by name.
        paths: files for some pieces, by name; made with mode 0600 if they do not exist, while existing ones keep their
            length. The other pieces are anonymous.

    Attributes:
        paths: where each piece is until ``keep``, by name. The path of an anonymous one is valid only in processes that
            have ``descriptors`` open.
        descriptors: of the anonymous pieces; closed at the end.

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
        """Give all files their names; take all of them back if that fails or the block does, as no guest uses them
        then.

        Raises:
            RequestError: somebody else has taken a name meanwhile.
            HostError: a file cannot be renamed.
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
