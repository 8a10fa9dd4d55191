"""Link: how handler and spill writer wake each other. Neither ever waits for the other to listen."""

from __future__ import annotations

import contextlib
import socket


class Link:
    """One end of a pair of sockets; a byte says that there is something to do.

    Args:
        end: the end.
    """

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        end.setblocking(False)

    @classmethod
    def pair(cls) -> tuple[Link, Link]:
        """Both ends; OSError if there is no descriptor left."""
        one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        return cls(one), cls(other)

    def fileno(self) -> int:
        """What is readable when there is something to ``hear``."""
        return self._end.fileno()

    def tell(self) -> None:
        """Wake the other end; if that is gone, or has more than enough to read already, nothing happens."""
        with contextlib.suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
            self._end.send(b"!")

    def hear(self) -> bool:
        """Forget what was told; False when the other end is gone."""
        try:
            return bool(self._end.recv(1 << 12))
        except BlockingIOError:
            return True
        except ConnectionResetError:
            return False

    def close(self) -> None:
        """Give it back; more than once does no harm."""
        self._end.close()
