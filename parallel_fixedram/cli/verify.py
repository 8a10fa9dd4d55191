"""``verify``: is a file what it says it is, and what RAM holds?"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from parallel_fixedram.cli import boot, common, output, sources
from parallel_fixedram.cli.folding import print_folded
from parallel_fixedram.cli.progress import shown
from parallel_fixedram.core.errors import RequestError
from parallel_fixedram.core.units import format_size

if TYPE_CHECKING:
    from parallel_fixedram.core.reports.verify import VerifyReport

MAX_LINES = 20
"""Most differences that are printed; --json has more of them."""

_EXAMPLES = """  parallel-fixedram verify /tmp/guest.mr
  parallel-fixedram verify /tmp/guest.mr --quick
  parallel-fixedram verify /tmp/guest.mr --ram pc.ram=/dev/shm/restored
  parallel-fixedram verify /tmp/vm.mr --load -- \\
      qemu-system-x86_64 -m 1G -display none"""


def register(subparsers: common.Subparsers[Any]) -> None:
    """Add the verb to the command line."""
    parser = common.add_verb(
        subparsers,
        "verify",
        summary="check a file's structure and digests, and compare it with live RAM",
        about="Check FILE: its structure, the digests it carries if it is one of ours, and with --ram every page\n"
        "against live RAM. Exit code 1 if anything differs, 3 if FILE is not a complete mapped-ram file.\n\n"
        "With --load, the strongest check there is: the QEMU behind --, whose command line is that of the guest that\n"
        "was saved, loads FILE as it would to run it; all of its RAM is compared with FILE, byte by byte, and it is\n"
        "ended. The guest does not run one instruction, and nothing is left. Exit code 4 if QEMU refuses. Disks may\n"
        "be in use by the guest that was saved: QEMU neither locks nor writes them before a guest runs. All else that\n"
        "the command line names is opened: name other sockets, ports and taps, and other files for serial lines,\n"
        "which QEMU empties. Firmware counts as well: what FILE has not, QEMU leaves as it was, and that differs.",
        examples=_EXAMPLES,
    )
    parser.add_argument("file", metavar="FILE", help="a mapped-ram file, by QEMU or by us")
    parser.add_argument("--quick", action="store_true", help="structure only: read no page")
    sources.add_ram_option(parser, "live RAM of a guest that stands still, to compare with")
    parser.usage = "%(prog)s FILE [options]\n       %(prog)s FILE [options] --load -- QEMU [argument ...]"
    parser.add_argument(
        "--load", action="store_true", help="have the QEMU behind -- load FILE, and compare all of its RAM with FILE"
    )
    boot.add_run_dir(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Carry out the verb; returns the exit code."""
    from parallel_fixedram.verbs.verify import verify

    if args.load:
        report = _load(args)
    elif args.run_dir:
        raise RequestError("--run-dir needs --load, and a QEMU command line behind --")
    else:
        with shown() as progress:
            report = verify(
                args.file, quick=args.quick, ram=[option.ram_file() for option in args.ram], observer=progress
            )
    output.print_report(report, _print, as_json=args.json)
    output.print_notes(report.warnings)
    return 0 if report.ok else 1


def _load(args: argparse.Namespace) -> VerifyReport:
    """Have a QEMU load the file."""
    from parallel_fixedram.verbs.verify_by_loading import verify_by_loading

    if args.command is None:
        raise RequestError("--load needs a QEMU command line, behind --", hint="see parallel-fixedram verify --help")
    if args.ram:
        raise RequestError("--load compares all RAM of the QEMU that it starts, so it does not go with --ram")
    with shown() as progress:
        return verify_by_loading(args.file, args.command, quick=args.quick, folder=args.run_dir, observer=progress)


def _print(report: VerifyReport) -> None:
    for difference in report.differences[:MAX_LINES]:
        print_folded(f"{report.file}: {difference}")
    if report.truncated or len(report.differences) > MAX_LINES:
        print_folded(f"{report.file}: ... and more, {report.bad_pages} pages in all")
    for block in report.blocks:
        print_folded(
            f"{block.idstr}: {format_size(block.used_length)}, {block.data_pages} of {block.pages} pages present"
        )
    if report.stale_pages and not report.digests:
        print_folded(
            f"{report.stale_pages} zero pages have stale bytes in their places, as a live save by QEMU leaves them"
        )
    if report.loaded_by:
        compared = f"{len(report.ram)} blocks, {format_size(report.ram_bytes)}"
        print_folded(f"{report.loaded_by} loaded it, and all of its RAM was compared: {compared}")
    checked = ["structure"]
    if report.digests:
        checked.append("digests")
    if report.loaded_by:
        checked.append("loaded RAM")
    elif report.ram:
        checked.append(f"RAM of {', '.join(report.ram)}")
    verdict = "ok" if report.ok else "DIFFERS"
    missing = "" if report.digests or report.quick else "; the file carries no digests"
    print_folded(f"{report.file}: {verdict} ({', '.join(checked)} checked{missing})")
