"""Hold signal handlers back while something is made that the clean-up does not know about yet."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

_CATCHABLE = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Python's signal handlers run when the block is left, not inside it.

    Blocking the signals would not do: another thread (numpy's OpenBLAS has some) would take a signal, and Python would
    still run the handler in the main thread. So the handlers are replaced by one that takes notes. In other threads
    there is nothing to do, because no handlers run there.
    """
    arrived: list[int] = []
    handlers = {}
    if threading.current_thread() is threading.main_thread():
        handlers = {each: found for each in _CATCHABLE if callable(found := signal.getsignal(each))}
    try:
        for signum in handlers:
            signal.signal(signum, lambda number, _frame: arrived.append(number))
        yield
    finally:
        for signum, handler in handlers.items():
            signal.signal(signum, handler)
        if arrived:
            signal.raise_signal(arrived[0])
