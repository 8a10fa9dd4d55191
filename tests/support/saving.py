"""Saves for tests: options without their groups, and dirty logs by script."""

from collections.abc import Callable, Mapping
from typing import Any

from support.observers import Heard as Heard

from parallel_fixedram.core.observer import SILENT, Observer
from parallel_fixedram.core.protocols import DirtySource, Machine
from parallel_fixedram.core.reports.plan import PlanReport
from parallel_fixedram.core.reports.restore import RestoreReport
from parallel_fixedram.core.reports.save import SaveReport
from parallel_fixedram.core.save_options import CaptureMode, Capturing, Gate, Publishing, SaveOptions, Writing
from parallel_fixedram.verbs.plan import plan as _plan
from parallel_fixedram.verbs.restore import restore as _restore
from parallel_fixedram.verbs.save import save as _save

GROUPS: dict[str, Any] = {"gate": Gate, "writing": Writing, "capture": Capturing, "publishing": Publishing}


def how_to(*, live: bool = False, **given: Any) -> SaveOptions:
    """Options by name, whatever their group; ``live``, or several rounds, saves in rounds."""
    if given.get("max_rounds") == 1:
        del given["max_rounds"]
    if live or "max_rounds" in given:
        given.setdefault("mode", CaptureMode.ROUNDS)
    groups = {
        name: kind(**{field: given.pop(field) for field in kind.__dataclass_fields__ if field in given})
        for name, kind in GROUPS.items()
    }
    assert not given, f"no options: {given}"
    return SaveOptions(**groups)


def save(
    machine: Machine | Callable[[], Machine],
    uri: str,
    options: SaveOptions | None = None,
    *,
    dirty: DirtySource | None = None,
    observer: Observer = SILENT,
    **given: Any,
) -> SaveReport:
    """A save; with ``options`` as they are, with several channels if they say so, or with those that are given."""
    if dirty is not None:
        assert not callable(machine)
        machine = Logged(machine, dirty)
    how = options or how_to(**given)
    return _save(
        machine,
        uri,
        gate=how.gate,
        writing=how.writing,
        capture=how.capture,
        publishing=how.publishing,
        observer=observer,
    )


def plan(machine: Machine | Callable[[], Machine], uri: str, **given: Any) -> PlanReport:
    """The plan for a save with these options."""
    how = how_to(**given)
    return _plan(machine, uri, gate=how.gate, writing=how.writing, capture=how.capture, publishing=how.publishing)


def several(**given: Any) -> SaveOptions:
    """``how_to`` with the rule against several channels lifted."""
    return how_to(experimental_multifd=True, **given)


def altered(options: SaveOptions, **changes: Any) -> SaveOptions:
    """The same but for some, whatever their group."""
    flat = {
        field: getattr(getattr(options, name), field)
        for name, kind in GROUPS.items()
        for field in kind.__dataclass_fields__
        if field != "max_rounds" or options.capture.mode is CaptureMode.ROUNDS
    }
    if changes.get("max_rounds", 1) > 1:
        changes.setdefault("mode", CaptureMode.ROUNDS)
    return how_to(**{**flat, **changes})


class Logged:
    """A machine with another dirty log."""

    def __init__(self, machine: Machine, dirty: DirtySource) -> None:
        self._machine = machine
        self._dirty = dirty

    def __getattr__(self, name: str) -> Any:
        return getattr(self._machine, name)

    def dirty_source(self) -> DirtySource:
        return self._dirty


def restore(uri: str, ram: Mapping[str, Any], *, check_digests: bool = False, **given: Any) -> RestoreReport:
    """A restore whose gate is given by its fields."""
    return _restore(uri, ram, gate=Gate(**given), check_digests=check_digests)
