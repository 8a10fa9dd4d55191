"""``bench report``, ``pictures`` and what other modules make of stored results."""

from __future__ import annotations

import argparse
from typing import Any

from parallel_fixedram.cli import bench_compare, bench_export, bench_history, bench_simulate, common, output
from parallel_fixedram.cli.folding import print_folded
from parallel_fixedram.core.schemas import stamped

_REPORT = """  parallel-fixedram bench report channels.json gaps.json --output report.html"""
_PICTURES = """  parallel-fixedram bench pictures channels.json --folder pictures"""


def register(subparsers: common.Subparsers[Any]) -> None:
    """Add the sub-verbs to ``bench``."""
    bench_compare.register(subparsers)
    bench_history.register(subparsers)
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
    bench_export.register(subparsers)
    bench_simulate.register(subparsers)


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
