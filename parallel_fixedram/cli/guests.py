"""``guests``: those that ``restore`` and ``clone`` have started, and their end."""

from __future__ import annotations

import argparse
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from parallel_fixedram.cli import common, output
from parallel_fixedram.cli.folding import print_folded, print_hanging
from parallel_fixedram.core.errors import RequestError
from parallel_fixedram.core.units import format_size

if TYPE_CHECKING:
    from parallel_fixedram.core.reports.guests import GuestsReport

_EXAMPLES = """  parallel-fixedram guests
  parallel-fixedram guests stop --all
with a name from the list, or for all guests of one clone:
  parallel-fixedram guests stop k3j2h1ab/0
  parallel-fixedram guests stop k3j2h1ab"""


def register(subparsers: common.Subparsers[Any]) -> None:
    """Add the verb to the command line."""
    parser = common.add_verb(
        subparsers,
        "guests",
        summary="guests that restore and clone have started: list them, end them",
        about="List the guests of this user that restore and clone have started and that are running, or end some\n"
        "of them: QEMU is told to quit through its monitor; if that is busy, by SIGTERM; and it is killed if neither\n"
        "helps within seconds. The guest's system is not shut down first: do that yourself, in the guest or with\n"
        "system_powerdown in its monitor.\n\n"
        "Both also remove what guests that ended by themselves have left in their run folders.",
        examples=_EXAMPLES,
    )
    parser.usage = "%(prog)s [--json]\n       %(prog)s stop NAME ... | --all"
    parser.add_argument("action", nargs="?", choices=("list", "stop"), default="list", help="what to do (default list)")
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help="which to end: NAME/N is one guest; NAME, or a run folder, is all that one command has started",
    )
    parser.add_argument("--all", action="store_true", help="end all of them")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Carry out the verb; returns the exit code."""
    from parallel_fixedram.verbs.guests import list_guests, stop_guests

    if args.action == "stop":
        report = stop_guests(args.names, everything=args.all)
    elif args.names or args.all:
        raise RequestError("NAME and --all are for guests stop")
    else:
        report = list_guests()
    output.print_notes(report.notes)
    output.print_report(report, partial(_print, stopping=args.action == "stop"), as_json=args.json)
    return 0


def _print(report: GuestsReport, *, stopping: bool) -> None:
    for gone in report.ended:
        print_folded(
            f"{gone.name}: process {gone.pid} had ended by itself{f'; QEMU: {gone.said}' if gone.said else ''}"
        )
    for stopped in report.stopped:
        print_folded(f"{stopped.name}: process {stopped.pid} ended by {stopped.how}")
    for guest in report.guests:
        memory = "" if guest.memory is None else f", {format_size(guest.memory)} of memory"
        since = datetime.fromtimestamp(guest.since).astimezone().isoformat(" ", "seconds")
        print_folded(f"{guest.name}: pid {guest.pid}{memory}, since {since}")
        print_hanging("  file  ", guest.file)
        print_hanging("  QMP   ", guest.qmp)
        print_hanging("  end   ", f"parallel-fixedram guests stop {guest.name}")
    if not (report.guests or report.stopped or (stopping and report.ended)):
        print("no guest that restore or clone has started runs")
