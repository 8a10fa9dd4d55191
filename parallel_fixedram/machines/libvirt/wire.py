"""Wire: requests in, answers and events out, on a socket served by libvirt's event loop."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from typing import Any

_MOST_BYTES = 16 << 20
"""How much may wait for the other end to read it; beyond that the other end counts as gone."""


class Wire:
    """QMP's messages on a socket.

    Args:
        libvirt: the module, with its default event loop.
        sock: connected.

    Attributes:
        fds: descriptors that have arrived and that nobody has taken yet.
        over: whether the other end is closed.
    """

    def __init__(self, libvirt: Any, sock: socket.socket) -> None:
        self._libvirt = libvirt
        self._sock = sock
        self._in, self._out = "", bytearray()
        self.fds: list[int] = []
        self.over = False
        sock.setblocking(False)
        readable = libvirt.VIR_EVENT_HANDLE_READABLE
        self._watch = libvirt.virEventAddHandle(sock.fileno(), readable, lambda *_: None, None)

    def receive(self) -> None:
        """Take in what has arrived."""
        try:
            data, fds, *_ = socket.recv_fds(self._sock, 1 << 20, 16, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return
        except OSError:
            data, fds = b"", []
        self.fds += fds
        self.over = self.over or not data
        self._in += data.decode()  # what the library sends is ASCII

    def request(self) -> Mapping[str, Any] | None:
        """The next request, once it has arrived completely; nothing but complete JSON marks its end."""
        self._in = self._in.lstrip()
        try:
            request, end = json.JSONDecoder().raw_decode(self._in)
        except ValueError:
            return None
        self._in = self._in[end:]
        return request if isinstance(request, dict) else {}

    def say(self, message: Mapping[str, Any]) -> None:
        """Send a message, or as much of it as the other end accepts now."""
        self._out += json.dumps(message).encode() + b"\r\n"
        self.send()

    def send(self) -> None:
        """Send what the other end accepts now; the rest follows when it accepts more."""
        try:
            while self._out:
                del self._out[: self._sock.send(self._out)]
        except BlockingIOError:
            self.over = self.over or len(self._out) > _MOST_BYTES
        except OSError:
            self.over, self._out = True, bytearray()
        wanted = self._libvirt.VIR_EVENT_HANDLE_READABLE
        if self._out:
            wanted |= self._libvirt.VIR_EVENT_HANDLE_WRITABLE
        self._libvirt.virEventUpdateHandle(self._watch, wanted)
