"""Link: how handler and spill writer wake each other, without ever waiting for each other."""

from __future__ import annotations

import contextlib
import socket


class Link:
    """One end of a pair of sockets; a byte means that there is something to do.

    Args:
        end: this end.
    """

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        end.setblocking(False)

    @classmethod
    def pair(cls) -> tuple[Link, Link]:
        """Both ends; raises OSError if no descriptors are left."""
        one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        return cls(one), cls(other)

    def fileno(self) -> int:
        """The descriptor, which is readable when there is something to ``hear``."""
        return self._end.fileno()

    def tell(self) -> None:
        """Wake the other end; does nothing if it is gone, or has plenty to read already."""
        with contextlib.suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
            self._end.send(b"!")

    def hear(self) -> bool:
        """Read and forget what has arrived; False if the other end is gone."""
        try:
            return bool(self._end.recv(1 << 12))
        except BlockingIOError:
            return True
        except ConnectionResetError:
            return False

    def close(self) -> None:
        """Close this end; may be called more than once."""
        self._end.close()
