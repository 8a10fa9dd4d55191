"""``doctor``: would a save work here, how, and what is missing for a better one?"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from parallel_fixedram.cli import common, output, sources
from parallel_fixedram.cli.findings import print_findings
from parallel_fixedram.cli.folding import print_folded
from parallel_fixedram.core.errors import RequestError
from parallel_fixedram.core.save_options import Disks, DisksMode

if TYPE_CHECKING:
    from parallel_fixedram.core.reports.doctor import DoctorReport

_EXAMPLES = """  parallel-fixedram doctor
  parallel-fixedram doctor /var/tmp
  parallel-fixedram doctor /var/tmp --qmp /tmp/qmp --disks overlay"""


def register(subparsers: common.Subparsers[Any]) -> None:
    """Add the verb to the command line."""
    parser = common.add_verb(
        subparsers,
        "doctor",
        summary="whether a save would work here, by which capture, and what is missing",
        about="Check whether a save has what it needs: features and rights on this host; FOLDER, where files would\n"
        "go; and, with --qmp, the devices, memory and disks of a running QEMU. Each line has a verdict: ok; absent,\n"
        "if a save works without it; refused, if it does not. Below it is how to get what is missing. Nothing is\n"
        "changed or left behind, and the guest is not stopped.\n\n"
        "Exit code 0: a save would work. 1: it would be refused.",
        examples=_EXAMPLES,
    )
    parser.add_argument(
        "folder", metavar="FOLDER", nargs="?", default=".", help="where files are to be saved (default: here)"
    )
    sources.add_qmp_options(parser)
    parser.add_argument(
        "--disks",
        choices=[str(mode) for mode in DisksMode],
        help="what is to become of the disks that the guest writes to: see save",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Carry out the verb; returns the exit code."""
    from parallel_fixedram.verbs.doctor import doctor

    qmp = sources.qmp_arguments(args)
    if args.disks and not args.qmp:
        raise RequestError("--disks is for --qmp: nothing else has disks")
    report = doctor(args.folder, qmp=args.qmp or "", disks=Disks(mode=args.disks), **qmp)
    output.print_report(report, _print, as_json=args.json)
    return 0 if report.ok else 1


def _print(report: DoctorReport) -> None:
    for section in report.sections:
        print_folded(f"{section.name} {report.folder}" if section.name == "folder" else section.name)
        print_findings(section.findings)
    refused = [each.what for section in report.sections for each in section.findings if each.verdict == "refused"]
    print_folded(f"a save would be refused: {', '.join(refused)}" if refused else "a save would work")
