"""``restore``: a mapped-ram file into guest RAM."""

from __future__ import annotations

import argparse
from typing import Any

from parallel_fixedram.cli import common
from parallel_fixedram.core.errors import RequestError
from parallel_fixedram.core.units import format_rate, format_size

_EXAMPLES = """  parallel-fixedram restore /tmp/guest.mr --ram pc.ram=/dev/shm/restored
  parallel-fixedram restore /tmp/guest.mr --ram pc.ram=/dev/shm/restored --verify --channels 2 --experimental-multifd"""


def register(subparsers: common.Subparsers[Any]) -> None:
    """Add the verb to the command line."""
    parser = common.add_verb(
        subparsers,
        "restore",
        summary="fill guest RAM from a file",
        about="Fill guest RAM from FILE. Afterwards it is what FILE says, whatever it held before. Blocks that are\n"
        "given no destination are left out. A destination that does not exist is made, with mode 0600.",
        examples=_EXAMPLES,
    )
    parser.add_argument("file", metavar="FILE", help="a mapped-ram file, by QEMU or by us")
    common.add_ram_option(parser, "where a block goes")
    common.add_gate_options(parser)
    parser.add_argument("--verify", action="store_true", help="hold every page against its digest in FILE")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Carry out the verb; returns the exit code."""
    from parallel_fixedram import app
    from parallel_fixedram.core.report import to_json

    if not args.ram:
        raise RequestError("a destination is needed: --ram IDSTR=PATH")
    ram = {each.idstr: app.Destination(path=each.path, offset=each.offset, length=each.length) for each in args.ram}
    if len(ram) < len(args.ram):
        raise RequestError("a block is given two destinations")
    with common.ProgressBar() as progress:
        report = app.restore(
            args.file, ram, **common.gate_arguments(args), check_digests=args.verify, progress=progress
        )
    if args.json:
        common.print_json(to_json(report))
        return 0
    for block in report.blocks:
        print(
            f"{block.idstr} -> {block.path}: {format_size(block.used_length)}, "
            f"{block.data_pages} pages with data, {block.zero_pages} zero"
        )
    for idstr in report.left_out:
        print(f"{idstr}: left out, no destination was given")
    checked = "every page matches its digest" if report.verified else "page digests not checked (--verify)"
    seconds = report.seconds.total
    print(f"{format_size(report.bytes)} read in {seconds:.3f} s, {format_rate(report.bytes, seconds)}; {checked}")
    return 0
