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
        about="Check FILE: its structure, its digests if it is one of our files, and with --ram every page against\n"
        "live RAM. Exit code 1 if anything differs, 3 if FILE is not a complete mapped-ram file.\n\n"
        "--load is the strongest check: the QEMU given after --, with the command line of the guest that was saved,\n"
        "loads FILE as if to run it; all of its RAM is compared with FILE, byte by byte, and it is ended. The guest\n"
        "does not run a single instruction, and nothing is left behind. Exit code 4 if QEMU refuses. The guest that\n"
        "was saved may go on using its disks: QEMU neither locks nor writes them before a guest runs. Disks that FILE\n"
        "records must be as they were, as for a restore. Everything else in the command line is opened: name other\n"
        "sockets, ports and taps, and other files for serial lines, because QEMU empties those. Firmware is compared\n"
        "too: what FILE does not have, QEMU leaves as it was, and that differs.",
        examples=_EXAMPLES,
    )
    parser.add_argument("file", metavar="FILE", help="a mapped-ram file, by QEMU or by us")
    parser.add_argument("--quick", action="store_true", help="structure only: read no page")
    sources.add_ram_option(parser, "live RAM of a stopped guest, to compare with")
    parser.usage = "%(prog)s FILE [options]\n       %(prog)s FILE [options] --load -- QEMU [argument ...]"
    parser.add_argument(
        "--load",
        action="store_true",
        help="have the QEMU after -- load FILE, and compare all of its RAM with FILE",
    )
    boot.add_disk_options(parser)
    boot.add_run_dir(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Carry out the verb; returns the exit code."""
    from parallel_fixedram.verbs.verify import verify

    if args.load:
        report = _load(args)
    elif needing := [name for name in ("disks", "disk_folder", "run_dir") if getattr(args, name)]:
        raise RequestError(f"--{needing[0].replace('_', '-')} needs --load, and a QEMU command line after --")
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
        raise RequestError("--load needs a QEMU command line after --", hint="see parallel-fixedram verify --help")
    if args.ram:
        raise RequestError("--load cannot be combined with --ram: it compares all RAM of the QEMU that it starts")
    disks = boot.disk_choice(args)
    with shown() as progress:
        return verify_by_loading(
            args.file, args.command, quick=args.quick, disks=disks, folder=args.run_dir, observer=progress
        )


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
    missing = "" if report.digests or report.quick else "; the file has no digests"
    print_folded(f"{report.file}: {verdict} ({', '.join(checked)} checked{missing})")
