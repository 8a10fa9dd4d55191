"""``diff``: pages that differ between two files."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from parallel_fixedram.cli import common, output
from parallel_fixedram.cli.folding import print_folded
from parallel_fixedram.cli.progress import shown
from parallel_fixedram.core.units import format_count, format_size

if TYPE_CHECKING:
    from parallel_fixedram.core.reports.diff import DiffReport, NotCompared

MAX_LINES = 1000
"""Most ranges that are printed; --json has all of them."""

_EXAMPLES = """with two files of yours:
  parallel-fixedram diff /tmp/before.mr /tmp/after.mr
  parallel-fixedram diff --json /tmp/before.mr /tmp/after.mr"""


def register(subparsers: common.Subparsers[Any]) -> None:
    """Add the verb to the command line."""
    parser = common.add_verb(
        subparsers,
        "diff",
        summary="pages that differ between two files, by RAMBlock and range",
        about="Compare the RAM in two files page by page; exit code 1 if it differs, or if one file has a block that\n"
        "the other lacks or has with another length. Who wrote a file, and its device sections, do not matter.",
        examples=_EXAMPLES,
    )
    parser.add_argument("file_a", metavar="A", help="a mapped-ram file")
    parser.add_argument("file_b", metavar="B", help="another one")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Carry out the verb; returns the exit code."""
    from parallel_fixedram.verbs.diff import diff

    with shown() as progress:
        report = diff(args.file_a, args.file_b, observer=progress)
    output.print_report(report, _print, as_json=args.json)
    return 0 if report.equal else 1


def _print(report: DiffReport) -> None:
    for each in report.differences[:MAX_LINES]:
        print_folded(str(each))
    if report.truncated or len(report.differences) > MAX_LINES:
        print("... and more")
    for block in report.not_compared:
        print_folded(_not_compared(report, block))
    print_folded("equal" if report.equal else format_count(report.differing_pages, "differing page"))


def _not_compared(report: DiffReport, block: NotCompared) -> str:
    """A line for a block that is not in both files with the same length."""
    sides = [
        f"{format_size(length)} in {path}"
        for length, path in ((block.length_a, report.file_a), (block.length_b, report.file_b))
        if length is not None
    ]
    return f"{block.idstr}: {'only ' if len(sides) == 1 else ''}{', '.join(sides)}: not compared"
