"""``clean``: what killed commands and power cuts have left in a folder."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from parallel_fixedram.cli import common, output
from parallel_fixedram.cli.folding import print_folded, print_hanging
from parallel_fixedram.core.units import format_count

if TYPE_CHECKING:
    from parallel_fixedram.core.reports.clean import CleanReport, Leftover

_EXAMPLES = """  parallel-fixedram clean /tmp
  parallel-fixedram clean /tmp --remove"""


def register(subparsers: common.Subparsers[Any]) -> None:
    """Add the verb to the command line."""
    parser = common.add_verb(
        subparsers,
        "clean",
        summary="what killed commands and power cuts have left in a folder: name it, remove it",
        about="Look for what commands that were killed, or a power cut, have left in FOLDER: files that were being\n"
        "made (.NAME.part), of saves and of restores into RAM; overlays; run folders of guests that have ended, and\n"
        "links to them; folders for temporary files. Nothing below FOLDER is looked at, and no link is followed. Only\n"
        "root sees what belongs to other users, and of that only files. Without --remove nothing is changed.\n\n"
        "What a process that lives holds is shown as held, and never removed. Overlays are removed only if they are\n"
        "empty: what a guest has written, or a saved file records, is yours to merge or to remove, and is told how.\n\n"
        "Exit code 0: nothing is left, or not any more. 1: something is.",
        examples=_EXAMPLES,
    )
    parser.add_argument("folder", metavar="FOLDER", help="where to look, not below it")
    parser.add_argument("--remove", action="store_true", help="remove what nobody holds and nobody can need")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Carry out the verb; returns the exit code."""
    from parallel_fixedram.verbs.clean import clean

    report = clean(args.folder, remove=args.remove)
    output.print_report(report, _print, as_json=args.json)
    return 0 if report.ok else 1


def _print(report: CleanReport) -> None:
    for each in report.found:
        print_hanging(f"{_state(each):<8}", f"{each.path!r}: {each.what}")
        if each.why_not:
            print_hanging(" " * 8, f"-> {each.why_not}")
    left = [each for each in report.found if each.is_left]
    removable = sum(not each.why_not for each in left)
    if removable:
        print_folded(f"{format_count(len(left), 'leftover')}; --remove removes {removable}")
    elif left:
        print_folded(f"{format_count(len(left), 'leftover')}, not for this command to remove")
    else:
        print_folded("nothing is left here")


def _state(found: Leftover) -> str:
    if found.removed:
        return "removed"
    return "held" if found.held else "left"
