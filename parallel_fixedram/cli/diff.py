"""``diff``: pages that differ between two files."""

from __future__ import annotations

import argparse
from typing import Any

from parallel_fixedram.cli import common
from parallel_fixedram.core.units import format_count

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
        about="Compare the RAM in two files page by page; exit code 1 if it differs, also if one file has a block\n"
        "that the other has not. Who wrote a file, and its device sections, do not matter.",
        examples=_EXAMPLES,
    )
    parser.add_argument("file_a", metavar="A", help="a mapped-ram file")
    parser.add_argument("file_b", metavar="B", help="another one")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Carry out the verb; returns the exit code."""
    from parallel_fixedram import app
    from parallel_fixedram.core.report import to_json

    with common.ProgressBar() as progress:
        report = app.diff(args.file_a, args.file_b, progress=progress)
    if args.json:
        common.print_json(to_json(report))
        return 0 if report.equal else 1
    for each in report.differences[:MAX_LINES]:
        print(each)
    if report.truncated or len(report.differences) > MAX_LINES:
        print("... and more")
    for idstr, path in [(i, report.file_a) for i in report.only_in_a] + [(i, report.file_b) for i in report.only_in_b]:
        print(f"{idstr}: only in {path}, or of another length there")
    print("equal" if report.equal else format_count(report.differing_pages, "differing page"))
    return 0 if report.equal else 1
