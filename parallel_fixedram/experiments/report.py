"""One HTML page about stored results: the questions, the host, every sample, what was missing, and the pictures.

The page is complete in itself: no scripts, nothing from the network, pictures inside. The same results give the same
page.
"""

from __future__ import annotations

import base64
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from parallel_fixedram.core.errors import HostError
from parallel_fixedram.core.latency import BINS, quantile, upper_end
from parallel_fixedram.core.units import format_count, format_size
from parallel_fixedram.experiments import pictures
from parallel_fixedram.experiments.latencies import latencies
from parallel_fixedram.experiments.limits import limits
from parallel_fixedram.experiments.metrics import Metric, meaning, seconds
from parallel_fixedram.experiments.pictures import drawing
from parallel_fixedram.experiments.pictures.series import case_labels, groups, place_text, source_text
from parallel_fixedram.experiments.published import beside
from parallel_fixedram.experiments.results import CaseResult, RunSet, Sitting
from parallel_fixedram.experiments.statistics import CONFIDENCE, Ratio, median, paired_ratio, summary

_TYPES = {"png": "image/png", "svg": "image/svg+xml"}
_IN_BYTES = ("memory", "memory_available", "swap", "swap_used", "dirty_bytes", "dirty_background_bytes", "size", "free")
"""Facts about a host that are sizes."""
_BY = ("guest", "qemu", "file_system")
_STYLE = """
body { font: 15px/1.45 sans-serif; margin: 2em auto; max-width: 1100px; padding: 0 1em; color: #222; }
h1, h2, h3, td, li, p { overflow-wrap: anywhere; }
table { border-collapse: collapse; font-size: 13px; margin: 0.5em 0 1.5em; }
th, td { border: 1px solid #ccc; padding: 2px 7px; text-align: right; vertical-align: top; }
th:first-child, td:first-child, th.group, table.facts td { text-align: left; }
th.group { background: #f4f4f4; }
td.samples { text-align: left; color: #555; }
div.picture { overflow-x: auto; margin: 1em 0; }
div.picture img { width: 100%; min-width: 720px; display: block; }
pre { background: #f4f4f4; padding: 0.6em; overflow-x: auto; font-size: 12px; }
@media (max-width: 700px) {
  body { margin: 0.5em auto; padding: 0 0.6em; }
  h1 { font-size: 1.4em; } h2 { font-size: 1.2em; }
  table.times, table.times tbody, table.times tr, table.times th, table.times td { display: block; border: 0; }
  table.times tr.heads { display: none; }
  table.times tr { border-top: 1px solid #ccc; padding: 4px 0; }
  table.times td { text-align: left; padding: 0 7px; }
  table.times td:first-child { font-weight: bold; }
  table.times td[title]::before { content: attr(title) ": "; color: #555; }
  table.times td:empty { display: none; }
}
"""


def page(run_sets: Sequence[tuple[str, RunSet]], *, with_pictures: bool = True) -> str:
    """The page.

    Args:
        run_sets: what each is called, and the results.
        with_pictures: whether to draw.

    Raises:
        RequestError: matplotlib is not installed, and pictures are wanted.
        HostError: there is no room to draw in.
    """
    title = "Experiments: " + ", ".join(run_set.scenario.name for _, run_set in run_sets)
    body = "\n".join("\n".join(_section(name, run_set, with_pictures)) for name, run_set in run_sets)
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n"
        f"<style>{_STYLE}</style>\n</head>\n<body>\n<h1>{escape(title)}</h1>\n{body}\n</body>\n</html>\n"
    )


def write(text: str, path: str) -> None:
    """Store a page; at every instant there is the old file or the new one.

    Raises:
        HostError: it cannot be written.
    """
    part = f"{path}.part"
    try:
        with open(part, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(part, path)
    except OSError as error:
        raise HostError.from_os(f"cannot write {path!r}", error) from error


def _section(name: str, run_set: RunSet, with_pictures: bool) -> Iterator[str]:
    facts = run_set.scenario
    yield f"<h2>{escape(facts.question)}</h2>"
    state = f"finished {run_set.finished}" if run_set.finished else "not finished"
    yield (
        f"<p>{escape(facts.name)} from {escape(name)}: {format_count(facts.repeats, 'sample')} a case after "
        f"{format_count(facts.warm_up, 'warm-up')}, seed {facts.seed}; started "
        f"{escape(str(run_set.started))}, {escape(state)}.</p>"
    )
    yield from _missing(run_set)
    if any(case.samples for case in run_set.cases):
        yield (
            "<p>Times are medians (least-most). A ratio is that of times in the same round, to the first case of ours "
            f"of the same guest and file system, with an interval that holds it in {CONFIDENCE:.0%} of all cases.</p>"
        )
    for metric in Metric:
        yield from _times(run_set, metric)
    yield from _published(run_set)
    yield from _limits(run_set)
    yield from _watched(run_set)
    yield from _latencies(run_set)
    if with_pictures:
        yield from _pictures(run_set)
    yield from _facts(run_set)
    yield f"<details><summary>The scenario</summary><pre>{escape(facts.text)}</pre></details>"


def _facts(run_set: RunSet) -> Iterator[str]:
    rows: list[tuple[str, Any]] = [("commit", run_set.commit or "unknown")]
    rows += [(f"version of {name}", value) for name, value in run_set.versions.items()]
    rows += _flat({name: value for name, value in run_set.host.items() if name not in run_set.versions})
    rows += [row for sitting in run_set.sittings for row in _sitting(sitting)]
    yield '<details><summary>The host</summary><table class="facts">'
    for name, value in rows:
        text = "unknown" if value is None else str(value)
        yield f"<tr><td>{escape(name.replace('_', ' '))}</td><td>{escape(text)}</td></tr>"
    yield "</table></details>"


def _sitting(sitting: Sitting) -> Iterator[tuple[str, Any]]:
    """What was found before, and what happened meanwhile."""
    when = f"sitting of {sitting.started}"
    for each in sitting.conditions:
        yield f"{when}, {each.what}", f"{each.verdict}: {each.detail}"
    if sitting.stolen is not None:
        yield f"{when}, stolen meanwhile", f"{sitting.stolen:.1%} of processor time"
        yield f"{when}, swapped meanwhile", f"{sitting.swapped_pages} pages"
    if sitting.throttled_seconds is not None:
        yield f"{when}, throttled meanwhile", f"{sitting.throttled_seconds:.1f} s"


def _flat(facts: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, value in facts.items():
        if isinstance(value, Mapping):
            found += _flat(value, f"{prefix}{name} ")
        elif name in _IN_BYTES and isinstance(value, int):
            found.append((f"{prefix}{name.removesuffix('_bytes')}", format_size(value)))
        elif isinstance(value, list):
            found.append((f"{prefix}{name}", ", ".join(f"{each:g}" if isinstance(each, float) else str(each)
                                                       for each in value)))  # fmt: skip
        else:
            found.append((f"{prefix}{name}", value))
    return found


def _missing(run_set: RunSet) -> Iterator[str]:
    if run_set.missing:
        yield "<h3>What could not be run here</h3>\n<ul>"
        for each in run_set.missing:
            yield f"<li>{escape(each.way)}: {escape(each.why)} ({len(each.cases)} cases)</li>"
        yield "</ul>"


def _times(run_set: RunSet, metric: Metric) -> Iterator[str]:
    """A table of one time; nothing where no case tells it."""
    cases = [case for case in run_set.cases if seconds(case, metric)]
    if not cases:
        return
    yield f"<h3>Milliseconds {escape(meaning(metric, cases))}</h3>"
    yield '<table class="times"><tr class="heads"><th>case</th><th>time</th><th>ratio</th><th>samples</th></tr>'
    for where, group in groups(cases, _BY):
        yield f'<tr><th class="group" colspan="4">{escape(_place(run_set, where))}</th></tr>'
        reference = next((case for case in group if case.parameters.get("way") == "ours"), None)
        labels = case_labels(group, not_in_name=_BY, always=("channels",))
        for case, label in zip(group, labels, strict=True):
            yield _row(case, label, metric, reference)
    yield "</table>"


def _published(run_set: RunSet) -> Iterator[str]:
    """Figures of others beside those of the same case; nothing where the scenario names none."""
    found = beside(run_set)
    if not found:
        return
    yield "<h3>Beside what others have published, seconds</h3>"
    yield "<p>Of other guests on other machines: compare factors, which are those to the publisher's first row.</p>"
    heads = ("published", "case", "time", "published", "factor", "here, median", "factor here")
    yield f'<table class="times"><tr class="heads">{"".join(f"<th>{head}</th>" for head in heads)}</tr>'
    for each in found:
        theirs, ours = f"{each.published.seconds:.3g}", f"{each.here:.3g}"
        cells = (each.published.by, each.case, str(each.published.metric).replace("_", " "), theirs)
        figures = (f"{each.published_factor:.2f}", ours, f"{each.factor:.2f}")
        yield f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in (*cells, *figures))}</tr>"
    yield "</table>"


def _limits(run_set: RunSet) -> Iterator[str]:
    """Ours by what cannot be faster; nothing where no limit was measured."""
    found = limits(run_set)
    if not found:
        return
    yield "<h3>How far from the limit, measured in the same rounds</h3>"
    yield (
        "<p>Milliseconds, medians. Limits: fio of as many bytes; one pass over RAM, divided among the workers; stop, "
        "device state and cont.</p>"
    )
    heads = "".join(f"<th>{head}</th>" for head in ("case", "phase", "ours", "limit", "ours / limit"))
    yield f'<table class="times"><tr class="heads">{heads}</tr>'
    for each in found:
        times = (
            f"<td>{_milliseconds(each.seconds)}</td><td>{_milliseconds(each.limit_seconds)} ({escape(each.limit)})</td>"
        )
        ratio = f"<td>{_ratio_text(each.ratio)}</td>"
        yield f"<tr><td>{escape(each.case)}</td><td>{escape(each.phase)}</td>{times}{ratio}</tr>"
    yield "</table>"


def _watched(run_set: RunSet) -> Iterator[str]:
    """How long guests that are watched got nothing done, and who used the processors; nothing where none is."""
    found = [(case, [sample.watch for sample in case.samples if sample.watch]) for case in run_set.cases]
    found = [(case, watches) for case, watches in found if watches]
    if not found:
        return
    yield "<h3>Milliseconds between two looks that saw the guest get something done</h3>"
    yield (
        "<p>In the run, and in brackets outside of it: 50, 90 and 99 % of all gaps are no longer, and the longest; "
        "processor time of QEMU, the guest's work included, and of our processes, in seconds. Medians.</p>"
    )
    heads = "".join(f"<th>{head}</th>" for head in ("case", "50 %", "90 %", "99 %", "longest", "QEMU", "ours"))
    yield f'<table class="times"><tr class="heads">{heads}</tr>'
    for case, watches in found:
        cells = [_gap([(getattr(each.gaps, name), getattr(each.quiet, name)) for each in watches]) for name in _GAPS]
        cells += [
            f"{median([getattr(each, name) for each in watches]):.2f}"
            for name in ("qemu_cpu_seconds", "our_cpu_seconds")
        ]
        yield f"<tr><td>{escape(case.id)}</td>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
    yield "</table>"


def _latencies(run_set: RunSet) -> Iterator[str]:
    """How long single writes, shards and faults took, by powers of two; nothing where nothing was counted."""
    found = latencies(run_set)
    if not found:
        return
    yield "<h3>How many single writes, shards and faults took how long</h3>"
    yield (
        "<p>Writes and shards of the run that was watched, faults of all samples. Every column has those that "
        "took less than its head says, and no less than that of the column before.</p>"
    )
    first = min(next(number for number, count in enumerate(each.bins) if count) for each in found)
    numbers = range(first, min(max(len(each.bins) for each in found), BINS))
    heads = ["case", "what", "99 %", *(_short(upper_end(number)) for number in numbers)]
    yield f'<table class="times"><tr class="heads">{"".join(f"<th>{head}</th>" for head in heads)}</tr>'
    for each in found:
        counts = [each.bins[number] if number < len(each.bins) else 0 for number in numbers]
        cells = [escape(each.case), each.what, f"&lt; {_short(quantile(each.bins, 0.99))}"]
        cells += [str(count) if count else "" for count in counts]
        yield f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
    yield "</table>"


def _short(time: float) -> str:
    """A power of two of microseconds, in few letters."""
    unit, name = next((pair for pair in ((1.0, "s"), (1e-3, "ms")) if time >= pair[0]), (1e-6, "us"))
    return f"{time / unit:.3g} {name}"


_GAPS = ("p50", "p90", "p99", "longest")


def _gap(pairs: Sequence[tuple[float, float]]) -> str:
    in_run, quiet = (median(values) for values in zip(*pairs, strict=True))
    return f"{_milliseconds(in_run)} ({_milliseconds(quiet)})"


def _place(run_set: RunSet, where: Mapping[str, Any]) -> str:
    """Guest and file system of a group; what writes nothing has no file system."""
    source = source_text(where) or "no guest"
    return source if where["file_system"] is None else f"{source}, on {place_text(run_set, where)}"


def _row(case: CaseResult, label: str, metric: Metric, reference: CaseResult | None) -> str:
    times = seconds(case, metric)
    facts = summary(times)
    ratio = None if reference is None or reference is case else _ratio(reference, case, metric)
    middle, least, most = (_milliseconds(each) for each in (facts.median, facts.least, facts.most))
    checked = ""
    if metric is Metric.TOTAL:  # which every case has
        checked = f"; checked by: {', '.join(sorted({sample.verified for sample in case.samples}))}"
    samples = ", ".join(_milliseconds(each) for each in times)
    return (
        f'<tr><td>{escape(label)}</td><td title="time">{middle} ({least}-{most})</td>'
        f'<td title="ratio">{_ratio_text(ratio)}</td>'
        f'<td class="samples" title="samples">{samples}{escape(checked)}</td></tr>'
    )


def _ratio(reference: CaseResult, case: CaseResult, metric: Metric) -> Ratio | None:
    """Of the rounds that both have; work that was lost may be less than none, and has no ratio then."""
    first, second = (
        {sample.number: value for sample in each.samples if (value := metric.of(sample) or 0) > 0}
        for each in (reference, case)
    )
    pairs = [(a, second[number]) for number, a in first.items() if number in second]
    return paired_ratio([a for a, _ in pairs], [b for _, b in pairs]) if pairs else None


def _ratio_text(ratio: Ratio | None) -> str:
    if ratio is None:
        return ""
    interval = f"{ratio.low:.2f} to {ratio.high:.2f}" if ratio.low is not None else ratio.why
    return f"{ratio.value:.2f} ({escape(interval)})"


def _milliseconds(time: float) -> str:
    value = time * 1000
    return f"{value:.1f}" if value >= 10 else f"{value:.3g}"


def _pictures(run_set: RunSet) -> Iterator[str]:
    found, missing = pictures.pictures_of(run_set)
    for picture in found:
        yield _image(picture)
    for kind, why in missing.items():
        yield f"<p>No picture {escape(kind)}: {escape(why)}.</p>"


def _image(picture: drawing.Picture) -> str:
    """A picture inside the page, in the format that takes less."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            paths = drawing.save(picture, os.path.join(folder, "picture"))
            path = min(paths, key=os.path.getsize)
            with open(path, "rb") as file:
                data = base64.b64encode(file.read()).decode()
    except OSError as error:
        raise HostError.from_os("cannot draw in the temporary folder", error) from error
    kind = _TYPES[path.rpartition(".")[2]]
    return f'<div class="picture"><img src="data:{kind};base64,{data}" alt="{escape(picture.title)}"></div>'
