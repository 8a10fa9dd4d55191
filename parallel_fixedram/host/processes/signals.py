"""Hold back what signal handlers do, while something is made that a clean-up does not know yet."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

_CATCHABLE = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Signals with a Python handler take effect when the block is left, not inside it.

    Blocking them would not do: another thread (numpy's OpenBLAS has some) takes the signal, and Python still runs the
    handler in the main thread. So the handlers are exchanged for one that takes notes. Other threads run no handlers.
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
