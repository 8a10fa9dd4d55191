"""Signals that ask the command to end: each becomes an exception, and none is lost on its way to the outermost caller.

An exception out of a signal handler appears wherever the interpreter happens to be. Some of these places drop it: a
weak reference's callback (importlib has one for each module), a ``__del__``, or C code that reports an ImportError in
its place. So one that goes away before it has been answered is raised again, a moment later.
"""

from __future__ import annotations

import signal
import sys
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_AGAIN_SECONDS = 0.001

_dropped = 0
"""Number of the signal whose exception went away unanswered, until it is raised again."""


class Interrupted(BaseException):
    """A signal that asks the command to end; unwinds through every clean-up on its way out.

    Attributes:
        signum: which one.
        hint: how to go on; may be added on the way.
        answered: set by the outermost caller: nobody else has to.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum
        self.hint = ""
        self.answered = False

    def __del__(self) -> None:
        global _dropped
        if not self.answered:
            _dropped = self.signum
            signal.setitimer(signal.ITIMER_REAL, _AGAIN_SECONDS)  # not now: we may be where the last one got lost


def begin() -> None:
    """From now on the signals raise Interrupted in the main thread, except those that are ignored (nohup)."""
    global _dropped
    _dropped = 0
    for signum in _SIGNALS:
        if signal.getsignal(signum) is not signal.SIG_IGN:
            signal.signal(signum, _interrupt)


def dropped() -> int:
    """Number of the signal whose exception was turned into another one on its way; 0 for none. It is not raised
    again."""
    if _dropped:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return _dropped


def _interrupt(signum: int, _frame: FrameType | None) -> None:
    for each in _SIGNALS:
        # not SIG_IGN: a second signal may be on its way already, and Python would show a traceback of dropping it
        signal.signal(each, _ignore)
    signal.signal(signal.SIGALRM, _interrupt_again)
    sys.unraisablehook = _tell_of_others
    raise Interrupted(signum)


def _interrupt_again(_signum: int, _frame: FrameType | None) -> None:
    global _dropped
    signum, _dropped = _dropped, 0
    if signum:
        raise Interrupted(signum)


def _tell_of_others(unraisable: sys.UnraisableHookArgs) -> None:
    """An exception of ours that is dropped is not worth a traceback: it comes again."""
    if not isinstance(unraisable.exc_value, Interrupted):
        sys.__unraisablehook__(unraisable)


def _ignore(_signum: int, _frame: FrameType | None) -> None:
    """The clean-up of the first signal goes on."""
