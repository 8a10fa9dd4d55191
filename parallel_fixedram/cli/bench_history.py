"""``bench history``: results appended commit by commit, and where a level changed."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING, Any

from parallel_fixedram.cli import common, output
from parallel_fixedram.cli.bench_compare import add_metric_option
from parallel_fixedram.cli.folding import print_folded
from parallel_fixedram.core.schemas import stamped
from parallel_fixedram.core.units import format_count

if TYPE_CHECKING:
    from parallel_fixedram.experiments.history import Trend

_EXAMPLES = """  parallel-fixedram bench history history.jsonl bench-results/few.json
  parallel-fixedram bench history history.jsonl --folder pictures"""


def register(subparsers: common.Subparsers[Any]) -> None:
    """Add the sub-verb to ``bench``."""
    parser = common.add_verb(
        subparsers,
        "history",
        summary="results kept commit after commit, and where a time changed",
        about="Append results to HISTORY, a line of JSON for each case, unless they are there already; then say for\n"
        "each case where its time changed (Pettitt's test; from ten entries on there is a chance to see it), and,\n"
        "with --folder, draw it. Entries of other hosts than that of the last one are left out.",
        examples=_EXAMPLES,
    )
    parser.add_argument("history", metavar="HISTORY", help="the file; made if it is not there")
    parser.add_argument("results", nargs="*", metavar="RESULT.json", help="files of results to be appended")
    add_metric_option(parser)
    parser.add_argument("--folder", metavar="DIR", help="where pictures go; created if it is not there")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Carry out ``bench history``; returns the exit code."""
    from parallel_fixedram.experiments import history
    from parallel_fixedram.experiments.metrics import Metric
    from parallel_fixedram.experiments.results import load

    entries, added = history.append(args.history, [load(path) for path in args.results])
    trends = history.trends(entries, Metric(args.metric))
    paths, why = _draw(args.folder, trends) if args.folder else ([], "")
    if args.json:
        told = {"verb": "bench history", "history": args.history, "entries": len(entries), "added": added}
        told |= {"metric": args.metric, "trends": [_json(each) for each in trends], "pictures": paths}
        output.print_json(stamped("bench_history", told))
        return 0
    print_folded(f"{args.history}: {format_count(len(entries), 'record')}, {added} of them new")
    for trend in trends:
        print_folded(f"{trend.scenario}: {trend.case}: {_level(trend)}")
        for step in trend.steps:
            commit = trend.entries[step.place].commit or "unknown"
            figures = f"{step.before * 1000:.4g} -> {step.after * 1000:.4g} ms, {step.after / step.before:.2f} times"
            print_folded(f"  step at {commit[:12]}: {figures} (p = {step.probability:.2g})")
    for path in paths:
        print_folded(path)
    if why:
        print_folded(f"no picture: {why}")
    return 0


def _level(trend: Trend) -> str:
    from parallel_fixedram.experiments.statistics import median

    last = trend.steps[-1].after if trend.steps else median(trend.medians)
    count = format_count(len(trend.entries), "record")
    others = f", {trend.left_out} of other hosts left out" if trend.left_out else ""
    return f"{last * 1000:.4g} ms, {count}{others}, {format_count(len(trend.steps), 'step')}"


def _json(trend: Trend) -> dict[str, Any]:
    return {
        "scenario": trend.scenario,
        "case": trend.case,
        "medians": trend.medians,
        "commits": [entry.commit for entry in trend.entries],
        "left_out": trend.left_out,
        "steps": [
            {
                "commit": trend.entries[step.place].commit,
                "place": step.place,
                "before": step.before,
                "after": step.after,
                "probability": step.probability,
            }
            for step in trend.steps
        ],
    }


def _draw(folder: str, trends: list[Trend]) -> tuple[list[str], str]:
    """Paths of the pictures, or why there are none."""
    from parallel_fixedram.experiments.pictures import drawing, trend

    drawing.require_matplotlib()
    drawing.make_folder(folder)
    try:
        found = trend.draw(trends)
    except drawing.NotDrawnError as reason:
        return [], str(reason)
    return [path for each in found for path in drawing.save(each, os.path.join(folder, each.name))], ""
