"""``verify``: is a file what it says it is, and what RAM holds?"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from parallel_fixedram.cli import common
from parallel_fixedram.core.units import format_size

if TYPE_CHECKING:
    from parallel_fixedram.core.report import VerifyReport

MAX_LINES = 20
"""Most differences that are printed; --json has more of them."""

_EXAMPLES = """  parallel-fixedram verify /tmp/guest.mr
  parallel-fixedram verify /tmp/guest.mr --quick
  parallel-fixedram verify /tmp/guest.mr --ram pc.ram=/dev/shm/restored"""


def register(subparsers: common.Subparsers[Any]) -> None:
    """Add the verb to the command line."""
    parser = common.add_verb(
        subparsers,
        "verify",
        summary="check a file's structure and digests, and compare it with live RAM",
        about="Check FILE: its structure, the digests it carries if it is one of ours, and with --ram every page\n"
        "against live RAM. Exit code 1 if anything differs, 3 if FILE is not a complete mapped-ram file.",
        examples=_EXAMPLES,
    )
    parser.add_argument("file", metavar="FILE", help="a mapped-ram file, by QEMU or by us")
    parser.add_argument("--quick", action="store_true", help="structure only: read no page")
    common.add_ram_option(parser, "live RAM of a guest that stands still, to compare with")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Carry out the verb; returns the exit code."""
    from parallel_fixedram import app
    from parallel_fixedram.core.report import to_json

    with common.ProgressBar() as progress:
        report = app.verify(
            args.file, quick=args.quick, ram=[option.ram_file() for option in args.ram], progress=progress
        )
    if args.json:
        common.print_json(to_json(report))
    else:
        _print(report)
    for warning in report.warnings:
        common.warn(f"note: {warning}")
    return 0 if report.ok else 1


def _print(report: VerifyReport) -> None:
    for difference in report.differences[:MAX_LINES]:
        print(f"{report.file}: {difference}")
    if report.truncated or len(report.differences) > MAX_LINES:
        print(f"{report.file}: ... and more, {report.bad_pages} pages in all")
    for block in report.blocks:
        print(f"{block.idstr}: {format_size(block.used_length)}, {block.data_pages} of {block.pages} pages present")
    if report.stale_pages and not report.digests:
        print(f"{report.stale_pages} zero pages have stale bytes in their places, as a live save by QEMU leaves them")
    checked = ["structure"]
    if report.digests:
        checked.append("digests")
    if report.ram:
        checked.append(f"RAM of {', '.join(report.ram)}")
    verdict = "ok" if report.ok else "DIFFERS"
    missing = "" if report.digests or report.quick else "; the file carries no digests"
    print(f"{report.file}: {verdict} ({', '.join(checked)} checked{missing})")
