"""Stored results for other programs and for people: CSV with a row a sample, Markdown with a row a case.

The columns of the CSV are the same for all results: what a way does not know, or cannot tell, is empty. A new column
comes at the end without a new version; one that goes away, or means something else, raises it (``samples`` in
core/schemas.py).
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

from parallel_fixedram.core.schemas import stamped
from parallel_fixedram.experiments.metrics import Metric, meaning, seconds
from parallel_fixedram.experiments.parameters import PARAMETERS, QEMU_PARAMETERS
from parallel_fixedram.experiments.results import Bytes, CaseResult, RunSet
from parallel_fixedram.experiments.statistics import median_interval, summary

_TIMES = ("total", "last_write", "pause", "lost", "gap", "wall")
_LATER = ("first_touch", "second_touch")
"""Of times, those whose columns came later, and stand at the end."""
_LATER_PARAMETERS = ("touch", "image_format", "live")
_LATER_OF_QEMU = ("hot", "at_random", "domain")
"""The same of parameters."""
COLUMNS = (
    *("schema", "version", "scenario", "commit", "started", "case", "way"),
    *(name for name in PARAMETERS if name not in ("qemu", *_LATER_PARAMETERS)),
    *(f"qemu_{name}" for name in QEMU_PARAMETERS if name not in _LATER_OF_QEMU),
    *("number", "verified"),
    *(f"{name}_seconds" for name in _TIMES),
    *(f"{each.name}_bytes" for each in fields(Bytes)),
    *("touch", *(f"{name}_seconds" for name in _LATER)),
    *(*_LATER_PARAMETERS[1:], *(f"qemu_{name}" for name in _LATER_OF_QEMU)),
)
"""Of the CSV, in their order."""


def as_csv(run_sets: Sequence[RunSet]) -> str:
    """A head line, and a row for each sample."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for run_set in run_sets:
        writer.writerows(rows(run_set))
    return text.getvalue()


def rows(run_set: RunSet) -> Iterator[dict[str, Any]]:
    """Values by column; None for what is empty."""
    of_all = {"scenario": run_set.scenario.name, "commit": run_set.commit, "started": run_set.started}
    for case in run_set.cases:
        parameters = {name: _cell(value) for name, value in case.parameters.items() if name in COLUMNS}
        qemu = case.parameters.get("qemu")
        guest = {f"qemu_{name}": _cell(qemu.get(name)) for name in QEMU_PARAMETERS} if isinstance(qemu, Mapping) else {}
        for sample in case.samples:
            times = {f"{name}_seconds": getattr(sample.seconds, name) for name in (*_TIMES, *_LATER)}
            sizes = {f"{each.name}_bytes": getattr(sample.bytes, each.name) for each in fields(Bytes)}
            own = {"case": case.id, "number": sample.number, "verified": sample.verified}
            yield stamped("samples", {**of_all, **parameters, **guest, **own, **times, **sizes})


def _cell(value: Any) -> Any:
    """Truth values as TOML and JSON write them."""
    return str(value).lower() if isinstance(value, bool) else value


def as_markdown(run_sets: Sequence[RunSet]) -> str:
    """For each run set its question, a line about where it was run, and a table."""
    return "\n".join(line for run_set in run_sets for line in _section(run_set))


def _section(run_set: RunSet) -> Iterator[str]:
    host = run_set.host
    told = [metric for metric in Metric if any(seconds(case, metric) for case in run_set.cases)]
    yield f"### {run_set.scenario.question}"
    yield ""
    processors = f"{host.get('cpus', '?')} processors, {host.get('cpu_model') or 'model unknown'}"
    yield f"`{run_set.scenario.name}`, commit {run_set.commit or 'unknown'}, {run_set.started}; {processors}."
    yield "Milliseconds: median (least-most), and the 95 % interval of the median; n samples."
    yield ""
    heads = [head for metric in told for head in (meaning(metric, run_set.cases), "95 %")]
    yield _row(["case", "n", *heads])
    yield _row(["---", "--:", *["--:"] * len(heads)])
    for case in run_set.cases:
        yield _row([case.id, str(len(case.samples)), *(cell for metric in told for cell in _cells(case, metric))])
    yield ""


def _cells(case: CaseResult, metric: Metric) -> tuple[str, str]:
    found = seconds(case, metric)
    if not found:
        return "", ""
    facts, interval = summary(found), median_interval(found)
    times = f"{_ms(facts.median)} ({_ms(facts.least)}-{_ms(facts.most)})"
    return times, "" if interval is None else f"{_ms(interval[0])}-{_ms(interval[1])}"


def _ms(time: float) -> str:
    return f"{time * 1000:.1f}"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


FORMATS = {"csv": as_csv, "markdown": as_markdown}
"""By the name that the command has for it."""
