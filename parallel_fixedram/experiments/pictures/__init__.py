"""Pictures from stored results alone: each module draws one kind, for as many subjects as the results have."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from parallel_fixedram.experiments.pictures import (
    drawing,
    file_size,
    gaps,
    guest_work,
    pauses,
    scaling,
    simulated,
    stalls,
    throughput,
    time_lines,
)
from parallel_fixedram.experiments.results import RunSet

if TYPE_CHECKING:
    from parallel_fixedram.experiments.pictures.drawing import Picture

KINDS: dict[str, Callable[[RunSet], list[Picture]]] = {
    module.NAME: module.draw
    for module in (throughput, gaps, file_size, pauses, guest_work, stalls, time_lines, scaling, simulated)
}
"""Every kind of picture, in the order in which they are drawn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """A kind of picture of a run set."""

    source: str
    """What the run set is called."""
    kind: str
    paths: tuple[str, ...]
    """PNG and SVG of each picture; none where ``why`` is given."""
    why: str = ""
    """Why there is nothing to draw."""


def pictures_of(run_set: RunSet) -> tuple[list[Picture], dict[str, str]]:
    """Every picture that a run set has data for, and for the other kinds why not.

    Raises:
        RequestError: matplotlib is not installed.
    """
    drawing.require_matplotlib()
    found, missing = [], {}
    for kind, draw in KINDS.items():
        try:
            found += draw(run_set)
        except drawing.NotDrawnError as reason:
            missing[kind] = str(reason)
    return found, missing


def draw_all(run_sets: Sequence[tuple[str, RunSet]], folder: str) -> list[Drawn]:
    """Write every picture that the results have data for.

    Args:
        run_sets: what each is called, which begins the names of its files, and the results.
        folder: where to; created if it is not there.

    Raises:
        RequestError: matplotlib is not installed, or ``folder`` is no folder.
        HostError: a file cannot be written.
    """
    drawing.require_matplotlib()
    drawing.make_folder(folder)
    found, taken = [], set()
    for source, run_set in run_sets:
        stem, number = drawing.file_stem(source), 2
        while stem in taken:
            stem, number = f"{drawing.file_stem(source)}-{number}", number + 1
        taken.add(stem)
        for kind, draw in KINDS.items():
            try:
                pictures = draw(run_set)
            except drawing.NotDrawnError as reason:
                found.append(Drawn(source=source, kind=kind, paths=(), why=str(reason)))
                continue
            paths = [drawing.save(each, os.path.join(folder, f"{stem}-{each.name}")) for each in pictures]
            found.append(Drawn(source=source, kind=kind, paths=tuple(path for pair in paths for path in pair)))
    return found
