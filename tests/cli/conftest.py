"""What the command talks to: a terminal, or what is none."""

import io
import sys
import threading

import pytest

from parallel_fixedram.cli.output import MANNER, Manner


class Terminal(io.StringIO):
    """A terminal that says when it was written to."""

    def __init__(self):
        super().__init__()
        self.written = threading.Event()

    def isatty(self):
        return True

    def write(self, text):
        super().write(text)
        self.written.set()
        return len(text)


@pytest.fixture
def terminal(monkeypatch):
    """``terminal("stdout", columns)``: that stream is a terminal from now on, so wide, or as wide as it does not say.

    Not at once, for pytest changes streams again between a fixture and the test.
    """

    def become(stream, columns=None, shown=None):
        monkeypatch.setenv("TERM", "xterm")
        if columns is None:
            monkeypatch.delenv("COLUMNS", raising=False)
        else:
            monkeypatch.setenv("COLUMNS", str(columns))
        shown = shown or Terminal()
        monkeypatch.setattr(sys, stream, shown)
        return shown

    return become


@pytest.fixture(autouse=True)
def _no_command_was_told_anything():
    """A test before may have run one, with --json for instance, in this process."""
    MANNER.as_json, MANNER.quiet, MANNER.progress = (getattr(Manner(), each) for each in Manner.__slots__)
