"""``bench compare``, ``report``, ``pictures`` and ``simulate``: what is made of stored results."""

from __future__ import annotations

import argparse
import math
from typing import TYPE_CHECKING, Any

from parallel_fixedram.cli import bench_simulate, common, output
from parallel_fixedram.cli.folding import print_folded
from parallel_fixedram.core.schemas import stamped
from parallel_fixedram.core.units import format_count

if TYPE_CHECKING:
    from parallel_fixedram.experiments.compare import CaseComparison

_COMPARE = """two files of results of yours:
  parallel-fixedram bench compare before.json after.json
  parallel-fixedram bench compare --metric pause --threshold 1.2 \\
      before.json after.json"""
_REPORT = """  parallel-fixedram bench report channels.json gaps.json --output report.html"""
_PICTURES = """  parallel-fixedram bench pictures channels.json --folder pictures"""
_METRIC_HELP = (
    "time to stable storage (default), to the last written page, of the guest's pause; of a guest that is watched: "
    "work lost, or the longest time without any"
)
_METRICS = ("total", "last_write", "pause", "lost", "gap")


def register(subparsers: common.Subparsers[Any]) -> None:
    """Add the sub-verbs to ``bench``."""
    compare = common.add_verb(
        subparsers,
        "compare",
        summary="by what factor two results differ, case by case, and how sure that is",
        about="Compare the samples of two files of results, case by case: the ratio of the medians, B by A, with a\n"
        "95 % interval. Exit code 1 if a case is surely slower by more than the threshold.",
        examples=_COMPARE,
    )
    compare.add_argument("a", metavar="A", help="results from before")
    compare.add_argument("b", metavar="B", help="results from now")
    compare.add_argument(
        "--threshold",
        type=_factor,
        default=1.05,
        metavar="FACTOR",
        help="a case is a regression when its whole interval lies above (default 1.05)",
    )
    compare.add_argument(
        "--metric",
        choices=_METRICS,
        default="total",
        help=_METRIC_HELP,
    )
    compare.set_defaults(run=run_compare)
    report = common.add_verb(
        subparsers,
        "report",
        summary="one HTML page about results, with all samples and pictures",
        about="Write one HTML page that needs nothing else: question, host, all samples, what was missing, pictures.",
        examples=_REPORT,
    )
    report.add_argument("results", nargs="+", metavar="RESULT.json", help="files of results")
    report.add_argument(
        "--output", required=True, type=common.output_path, metavar="FILE", help="the page; replaced if it is there"
    )
    report.add_argument("--no-pictures", action="store_true", help="tables only; does not need matplotlib")
    report.set_defaults(run=run_report)
    drawn = common.add_verb(
        subparsers,
        "pictures",
        summary="pictures of results, as PNG and SVG",
        about="Draw every picture that the results have data for, and say which ones they have none for, and why.",
        examples=_PICTURES,
    )
    drawn.add_argument("results", nargs="+", metavar="RESULT.json", help="files of results")
    drawn.add_argument("--folder", required=True, metavar="DIR", help="where to; created if it is not there")
    drawn.set_defaults(run=run_pictures)
    bench_simulate.register(subparsers)


def _factor(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 1 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a factor from 1 on")
    return value


def run_compare(args: argparse.Namespace) -> int:
    """Carry out ``compare``; returns the exit code."""
    from parallel_fixedram.experiments import metrics
    from parallel_fixedram.experiments.compare import compare
    from parallel_fixedram.experiments.results import load

    before, now = load(args.a), load(args.b)
    found = compare(before, now, metric=metrics.Metric(args.metric), threshold=args.threshold)
    code = 1 if found.regressions else 0
    if args.json:
        told = {"verb": "bench compare", "a": args.a, "b": args.b, **found.to_json()}
        output.print_json(stamped("bench_compare", told))
        return code
    for warning in found.warnings:
        output.warn(warning)
    print_folded(f"time {metrics.meaning(found.metric, before.cases)}: {args.b} by {args.a}")
    for each in found.cases:
        print_folded(_line(each))
    for path, ids in ((args.a, found.only_in_a), (args.b, found.only_in_b)):
        for case_id in ids:
            print_folded(f"{case_id}: only in {path}")
    for case_id in found.not_told:
        print_folded(f"{case_id}: does not tell this time")
    print_folded(f"{format_count(len(found.regressions), 'regression')} beyond {found.threshold:g}")
    return code


def _line(case: CaseComparison) -> str:
    ratio = case.ratio
    interval = "no interval" if ratio.low is None else f"95 % {ratio.low:.3f} to {ratio.high:.3f}"
    why = f" ({ratio.why})" if ratio.why else ""
    medians = f"{case.first.median * 1000:.4g} -> {case.second.median * 1000:.4g} ms"
    mark = ", a regression" if case.regression else ""
    return f"{case.id}: {ratio.value:.3f}, {interval}, {medians}: {ratio.verdict}{why}{mark}"


def run_report(args: argparse.Namespace) -> int:
    """Carry out ``report``; returns the exit code."""
    from parallel_fixedram.experiments import report
    from parallel_fixedram.experiments.results import load

    run_sets = [(path, load(path)) for path in args.results]
    report.write(report.page(run_sets, with_pictures=not args.no_pictures), args.output)
    if args.json:
        told = {"verb": "bench report", "results": args.results, "output": args.output}
        output.print_json(stamped("bench_report", told))
    else:
        print_folded(f"wrote {args.output}")
    return 0


def run_pictures(args: argparse.Namespace) -> int:
    """Carry out ``pictures``; returns the exit code."""
    import os

    from parallel_fixedram.experiments import pictures
    from parallel_fixedram.experiments.results import load

    run_sets = [(os.path.splitext(os.path.basename(path))[0], load(path)) for path in args.results]
    found = pictures.draw_all(run_sets, args.folder)
    if args.json:
        kinds = [
            {"source": each.source, "kind": each.kind, "paths": list(each.paths), "why": each.why} for each in found
        ]
        told = {"verb": "bench pictures", "folder": args.folder, "pictures": kinds}
        output.print_json(stamped("bench_pictures", told))
        return 0
    for each in found:
        for path in each.paths:
            print_folded(path)
    for each in found:
        if each.why:
            print_folded(f"{each.source}: no picture {each.kind}: {each.why}")
    return 0
