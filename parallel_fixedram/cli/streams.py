"""The standard streams of the command: open, able to print any name, and telling when they fail."""

from __future__ import annotations

import codecs
import io
import os
import sys
from collections.abc import Callable
from typing import Any, TextIO, TypeVar

from parallel_fixedram.core.errors import HostError

_NAMES = "parallel-fixedram-names"
_FIRST_BYTE, _LAST_BYTE = 0xDC80, 0xDCFF  # PEP 383: what stands for a byte of a name that is not UTF-8

_T = TypeVar("_T")


class Output:
    """A stream whose failures to write are told from all others."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write as the stream does.

        Raises:
            HostError: the system refuses.
        """
        return self._told(lambda: self._stream.write(text))

    def flush(self) -> None:
        """Flush as the stream does; raises as ``write``."""
        self._told(self._stream.flush)

    def _told(self, act: Callable[[], _T]) -> _T:
        try:
            return act()
        except BrokenPipeError:  # whoever has read enough is no error
            raise
        except OSError as error:
            raise HostError.from_os("cannot write to stdout", error) from error


def prepare(*, alone: bool) -> None:
    """Open what the caller closed, or the file to write would become descriptor 1 or 2 and get our messages too.

    Args:
        alone: whether this process is for the command, so that its streams may be replaced.
    """
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)
    for stream in (sys.stdout, sys.stderr):
        print_any_name(stream)
    if alone:
        sys.stdout = Output(sys.stdout)


def print_any_name(stream: TextIO) -> None:
    """Have a stream print the bytes of names that are no text, and escapes for characters that its encoding lacks."""
    codecs.register_error(_NAMES, _as_named)
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors=_NAMES)


def is_broken(stream: TextIO) -> bool:
    """Whether a stream takes no more; what it still holds is then lost, instead of failing the interpreter's exit."""
    try:
        stream.flush()
    except (OSError, HostError):
        os.dup2(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC), stream.fileno())
        return True
    return False


def _as_named(error: UnicodeError) -> tuple[str | bytes, int]:
    """Stands in for what the encoding of a stream lacks: that byte for a byte of a name, else an escape."""
    assert isinstance(error, UnicodeEncodeError)
    text, start = error.object, error.start
    code = ord(text[start])
    if _FIRST_BYTE <= code <= _LAST_BYTE:
        return bytes([code & 0xFF]), start + 1
    return codecs.backslashreplace_errors(UnicodeEncodeError(error.encoding, text, start, start + 1, ""))
