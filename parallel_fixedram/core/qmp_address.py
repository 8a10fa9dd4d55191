"""Where a monitor is, in the ways in which people have it at hand: a path, or what QEMU's own option was given."""

from __future__ import annotations

import re
from collections.abc import Callable

from parallel_fixedram.core.errors import RequestError

_OPTION = r"(?:server|wait|nowait|abstract|tight|reconnect|reconnect-ms|id|mode|pretty)"
_OPTIONS = re.compile(rf"((?:,{_OPTION}(?:=[^,]*)?)*)$")
"""What may follow a path in ``-qmp unix:PATH,server=on,wait=off`` and in ``-chardev socket,path=PATH,...``."""

_NO_SOCKET = re.compile(r"(tcp|telnet|tn3270|websocket|udp|vsock|pipe|pty|fd|stdio|vc|null)(:|$)|[^/]*:\d+(,|$)")
"""Other devices that QEMU can have a monitor on, with HOST:PORT among them."""

_HOW = "give QEMU a monitor more, with -qmp unix:PATH,server=on,wait=off"


def qmp_socket(address: str, exists: Callable[[str], bool]) -> str:
    """The path of the unix socket that is meant, as ``connect`` takes it.

    Args:
        address: ``PATH``, or ``unix:PATH``, each as it is or with the options of QEMU's ``-qmp`` after it.
        exists: whether there is a file of this name, which is then meant whatever the name looks like.

    Raises:
        RequestError: it is no unix socket, or one that QEMU does not listen on.
    """
    if exists(address):
        return address
    if not address.startswith("unix:") and _NO_SOCKET.match(address):
        what = "is not a unix socket, which alone can hand QEMU the descriptor for its device state"
        raise RequestError(f"--qmp {address!r} {what}", hint=_HOW)
    path = address.removeprefix("unix:")
    if exists(path):
        return path
    found = _OPTIONS.search(path)
    options = found[1] if found else ""
    path = path.removesuffix(options).replace(",,", ",")
    given = options.split(",")
    if not path:
        raise RequestError(f"--qmp {address!r} names no socket", hint=_HOW)
    if "server=off" in given:
        raise RequestError(f"--qmp {address!r}: with server=off QEMU does not listen on its socket", hint=_HOW)
    return f"\0{path}" if "abstract=on" in given else path
