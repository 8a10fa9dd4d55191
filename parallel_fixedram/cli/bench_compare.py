"""``bench compare``: by what factor two results differ, case by case, and how sure that is."""

from __future__ import annotations

import argparse
import math
from typing import TYPE_CHECKING, Any

from parallel_fixedram.cli import common, output
from parallel_fixedram.cli.folding import print_folded
from parallel_fixedram.core.errors import RequestError
from parallel_fixedram.core.schemas import stamped
from parallel_fixedram.core.units import format_count

if TYPE_CHECKING:
    from parallel_fixedram.experiments.statistics import Ratio

_EXAMPLES = """two files of results of yours:
  parallel-fixedram bench compare before.json after.json
  parallel-fixedram bench compare --metric pause --threshold 1.2 \\
      before.json after.json"""


def register(subparsers: common.Subparsers[Any]) -> None:
    """Add the sub-verb to ``bench``."""
    parser = common.add_verb(
        subparsers,
        "compare",
        summary="by what factor two results differ, case by case, and how sure that is",
        about="Compare the samples of two files of results, case by case: the ratio of the medians, B by A, with a\n"
        "95 % interval. Exit code 1 if a case is surely slower by more than the threshold. Results of different hosts\n"
        "(processors, memory) are refused; after a reboot, or with another kernel or disk, a host is still the\n"
        "same, and a warning says what differs.",
        examples=_EXAMPLES,
    )
    parser.add_argument("a", metavar="A", help="results from before")
    parser.add_argument("b", metavar="B", help="results from now")
    add_threshold_option(parser)
    add_metric_option(parser)
    parser.add_argument("--force", action="store_true", help="compare results of different hosts all the same")
    parser.set_defaults(run=run)


def add_threshold_option(parser: Any) -> None:
    """By what factor a case has to be slower to count."""
    parser.add_argument(
        "--threshold",
        type=common.number("a factor from 1 on", lambda value: 1 <= value < math.inf),
        default=1.05,
        metavar="FACTOR",
        help="a case is a regression when its whole interval lies above (default 1.05)",
    )


def add_metric_option(parser: Any) -> None:
    """Which time it is about."""
    parser.add_argument(
        "--metric",
        choices=("total", "last_write", "pause", "lost", "gap", "first_touch", "second_touch"),
        default="total",
        metavar="TIME",
        help="total, to stable storage (default); last_write; pause; of a guest that is watched: lost, work not done, "
        "or gap, the longest time without any; of one that was started: first_touch and second_touch, until all its "
        "RAM was read",
    )


def run(args: argparse.Namespace) -> int:
    """Carry out ``compare``; returns the exit code."""
    from parallel_fixedram.experiments import metrics
    from parallel_fixedram.experiments.compare import compare, other_host
    from parallel_fixedram.experiments.results import load

    before, now = load(args.a), load(args.b)
    if not args.force and (different := other_host(before, now)):
        raise RequestError(
            f"{args.a!r} and {args.b!r} are of different hosts: {', '.join(different)}",
            hint="run both on one host; --force compares them all the same",
        )
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
        medians = f"{each.first.median * 1000:.4g} -> {each.second.median * 1000:.4g}"
        print_folded(line(each.id, medians, each.ratio, regression=each.regression))
    for path, ids in ((args.a, found.only_in_a), (args.b, found.only_in_b)):
        for case_id in ids:
            print_folded(f"{case_id}: only in {path}")
    for case_id in found.not_told:
        print_folded(f"{case_id}: does not tell this time")
    print_folded(f"{format_count(len(found.regressions), 'regression')} beyond {found.threshold:g}")
    return code


def line(name: str, medians: str, ratio: Ratio, *, regression: bool) -> str:
    """A case and by what factor it differs.

    Args:
        name: of the case.
        medians: both of them.
        ratio: of the second to the first.
        regression: whether that is slower than it may be.
    """
    interval = "no interval" if ratio.low is None else f"95 % {ratio.low:.3f} to {ratio.high:.3f}"
    why = f" ({ratio.why})" if ratio.why else ""
    mark = ", a regression" if regression else ""
    return f"{name}: {ratio.value:.3f}, {interval}, {medians} ms: {ratio.verdict}{why}{mark}"
