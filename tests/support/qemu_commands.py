"""The commands that QEMU is sent from this process, and what happens at one of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from parallel_fixedram.machines.qemu.monitor import Monitor


class Commands:
    """What is sent, and what others do meanwhile.

    Attributes:
        sent: their names.
        before: done before one is sent; gets its name and its arguments.
        behind: done when it is answered; gets its name and the answer, and returns the answer that is taken.
        ignored: names of those that QEMU never hears of.
    """

    def __init__(self) -> None:
        self.sent: list[str] = []
        self.before: Callable[[str, Any], object] = lambda name, arguments: None
        self.behind: Callable[[str, Any], Any] = lambda name, answer: answer
        self.ignored: set[str] = set()


def commands_from_now_on(monkeypatch: pytest.MonkeyPatch) -> Commands:
    """Those of the rest of a test."""
    commands, execute = Commands(), Monitor.execute

    def watched(monitor: Monitor, name: str, arguments: Any = None, **options: Any) -> Any:
        commands.before(name, arguments)
        commands.sent.append(name)
        answer = {} if name in commands.ignored else execute(monitor, name, arguments, **options)
        return commands.behind(name, answer)

    monkeypatch.setattr(Monitor, "execute", watched)
    return commands
