"""``bench export``: stored results as CSV or Markdown."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from parallel_fixedram.cli import common, output
from parallel_fixedram.cli.folding import print_folded
from parallel_fixedram.core.errors import RequestError
from parallel_fixedram.core.schemas import stamped

_EXAMPLES = """  parallel-fixedram bench export channels.json --format markdown
  parallel-fixedram bench export channels.json gaps.json --format csv \\
      --output samples.csv"""


def register(subparsers: common.Subparsers[Any]) -> None:
    """Add the sub-verb to ``bench``."""
    parser = common.add_verb(
        subparsers,
        "export",
        summary="results as CSV, a row a sample, or as Markdown, a row a case",
        about="Print results as CSV, with a row for each sample, or as Markdown, with a table for each file and a row\n"
        "for each case. docs/json.md says what the columns are.",
        examples=_EXAMPLES,
    )
    parser.add_argument("results", nargs="+", metavar="RESULT.json", help="files of results")
    parser.add_argument("--format", required=True, choices=("csv", "markdown"), help="what to make of them")
    parser.add_argument(
        "--output", type=common.output_path, metavar="FILE", help="where to; replaced if it is there (default: stdout)"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Carry out ``bench export``; returns the exit code."""
    from parallel_fixedram.experiments import export, report
    from parallel_fixedram.experiments.results import load

    if args.json and not args.output:
        raise RequestError("--json prints an object about the file: give its name with --output")
    text = export.FORMATS[args.format]([load(path) for path in args.results])
    if not args.output:
        sys.stdout.write(text)
        return 0
    report.write(text, args.output)
    if args.json:
        told = {"verb": "bench export", "results": args.results, "format": args.format, "output": args.output}
        output.print_json(stamped("bench_export", told))
    else:
        print_folded(f"wrote {args.output}")
    return 0
