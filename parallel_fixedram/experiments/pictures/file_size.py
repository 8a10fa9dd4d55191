"""How large the file gets while the guest goes on dirtying its RAM: fixed offsets against a stream that appends."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from parallel_fixedram.core.units import GIB
from parallel_fixedram.experiments.pictures import drawing, style
from parallel_fixedram.experiments.pictures.series import case_labels, groups, source_text
from parallel_fixedram.experiments.results import CaseResult, RunSet
from parallel_fixedram.experiments.statistics import median

NAME = "file-size"
_TITLE = "How large the file is while the guest goes on dirtying its RAM, by rounds"

Growth = tuple[tuple[int, int], ...]


def draw(run_set: RunSet) -> list[drawing.Picture]:
    """A picture for each source.

    Raises:
        NotDrawnError: no sample tells how the file grew.
    """
    cases = [case for case in run_set.cases if any(sample.growth for sample in case.samples)]
    if not cases:
        raise drawing.NotDrawnError("no sample tells how the file grew with the rounds")
    return [
        _picture(run_set, source_text(where), group, number + 1)
        for number, (where, group) in enumerate(groups(cases, ("guest", "qemu")))
    ]


def _picture(run_set: RunSet, subject: str, cases: Sequence[CaseResult], number: int) -> drawing.Picture:
    drawn = drawing.sheet()
    [axes] = drawn.axes
    labels = case_labels(cases, not_in_name=("guest", "qemu"))
    counts: list[int] = []
    line = 0
    ticks: set[int] = set()
    for case, label in zip(cases, labels, strict=True):
        fixed = [sample.growth for sample in case.samples if sample.growth]
        stream = [sample.sequential for sample in case.samples if sample.sequential]
        appends = case.parameters.get("way") in ("sequential", "qemu-file")
        for name, growths in (
            (f"{label}: the file" if appends else f"{label}: the file, pages at fixed offsets", fixed),
            (f"{label}: a stream that appends every page, computed", stream),
        ):
            if growths:
                look = style.line_style(line)
                x, y = _medians(growths)
                drawn.legend(axes.plot(x, y, **look)[0], name)
                for growth in growths:
                    style.dots(axes, [each[0] for each in growth], [each[1] / GIB for each in growth], look["color"])
                counts.append(len(growths))
                ticks |= {int(each) for each in x}
                line += 1
    for ram in sorted({sample.bytes.ram for case in cases for sample in case.samples}):
        look = {"color": "#555555", "linewidth": 1.0, "linestyle": ":"}
        axes.axhline(ram / GIB, zorder=1, **look)
        drawn.legend(style.sample_line(look), f"size of RAM: {ram / GIB:g} GiB")
    axes.set_ylim(0, axes.get_ylim()[1] * 1.05)
    style.whole_numbers(axes, sorted(ticks))
    axes.set_xlabel("rounds over the dirty pages, done so far (number)")
    axes.set_ylabel("size of the file, GiB")
    style.grid(axes)
    return drawing.finish(drawn, run_set, f"{NAME}-{number}", _TITLE, subject=subject, samples=counts)


def _medians(growths: Iterable[Growth]) -> tuple[list[float], list[float]]:
    """Rounds, and the median size after each, GiB."""
    sizes: dict[int, list[float]] = {}
    for growth in growths:
        for rounds, size in growth:
            sizes.setdefault(rounds, []).append(size / GIB)
    order = sorted(sizes)
    return [float(each) for each in order], [median(sizes[each]) for each in order]
