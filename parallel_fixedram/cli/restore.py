"""``restore``: a mapped-ram file into guest RAM, or into a QEMU."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from parallel_fixedram.cli import boot, common, options, output, sources
from parallel_fixedram.cli.folding import print_folded
from parallel_fixedram.cli.progress import shown
from parallel_fixedram.core.errors import RequestError
from parallel_fixedram.core.units import format_rate, format_size

if TYPE_CHECKING:
    from parallel_fixedram.core.reports.restore import RestoreReport

_EXAMPLES = """  parallel-fixedram restore /tmp/vm.mr -- qemu-system-x86_64 -m 1G -display none
  parallel-fixedram restore /tmp/guest.mr --ram pc.ram=/dev/shm/restored
  parallel-fixedram restore /tmp/guest.mr --ram pc.ram=/dev/shm/restored \\
      --verify --channels 2 --experimental-multifd"""


def register(subparsers: common.Subparsers[Any]) -> None:
    """Add the verb to the command line."""
    parser = common.add_verb(
        subparsers,
        "restore",
        summary="start a QEMU from a file, or fill guest RAM from it",
        about="With a QEMU command line after -- (the one that the guest was saved from): start that QEMU with the\n"
        "RAM and device state of FILE. It keeps running when this command is done. QEMU loads FILE into memory of\n"
        "its own; with --shared it gets shared memory that our workers fill, and its memory backends are replaced.\n"
        "If FILE records disks, the guest gets overlays on their images; images that were written since are\n"
        "refused. Other disks, sockets and ports are opened again: end the QEMU that the guest was saved from, or\n"
        "name others.\n\n"
        "Without one: fill guest RAM from FILE, whatever it held before. Blocks without a destination are left\n"
        "out. A destination that does not exist is made, with mode 0600.",
        examples=_EXAMPLES,
    )
    parser.usage = "%(prog)s FILE [options] -- QEMU [argument ...]\n       %(prog)s FILE [options] --ram IDSTR=PATH ..."
    parser.add_argument("file", metavar="FILE", help="a mapped-ram file, by QEMU or by us")
    sources.add_ram_option(parser, "where a block goes")
    options.add_gate_options(parser)
    parser.add_argument("--verify", action="store_true", help="check every page against its digest in FILE")
    qemu = parser.add_argument_group("with a QEMU command line")
    qemu.add_argument(
        "--shared",
        action="store_true",
        help="give the guest shared memory that our workers fill: anonymous, or the files that --ram names",
    )
    boot.add_boot_options(qemu)
    parser.set_defaults(run=run, verb="restore")


def run(args: argparse.Namespace) -> int:
    """Carry out the verb; returns the exit code."""
    if args.command is not None:
        return _start(args)
    from parallel_fixedram.verbs.restore import Destination, restore

    for option in ("shared", "paused", "disks", "disk_folder", "run_dir", "print"):
        if getattr(args, option):
            raise RequestError(f"--{option.replace('_', '-')} needs a QEMU command line after --")
    if not args.ram:
        raise RequestError("a destination is needed: -- QEMU [argument ...], or --ram IDSTR=PATH")
    ram = {each.idstr: Destination(path=each.path, offset=each.offset, length=each.length) for each in args.ram}
    if len(ram) < len(args.ram):
        raise RequestError("a block is given two destinations")
    with shown() as progress:
        report = restore(args.file, ram, gate=options.gate(args), check_digests=args.verify, observer=progress)
    output.print_report(report, _print, as_json=args.json)
    return 0


def _print(report: RestoreReport) -> None:
    for block in report.blocks:
        print_folded(
            f"{block.idstr} -> {block.path}: {format_size(block.used_length)}, "
            f"{block.data_pages} pages with data, {block.zero_pages} zero"
        )
    for idstr in report.left_out:
        print_folded(f"{idstr}: left out, no destination was given")
    checked = "every page matches its digest" if report.verified else "page digests not checked (--verify)"
    seconds = report.seconds.total
    how = "bypassing the page cache" if report.direct_io else "through the page cache"
    print_folded(
        f"{format_size(report.bytes)} read {how} in {seconds:.3f} s, {format_rate(report.bytes, seconds)}; {checked}"
    )


def _start(args: argparse.Namespace) -> int:
    """Start a QEMU from the file."""
    from parallel_fixedram.verbs.restore_guest import plan_restore, restore_guest

    if any(each.offset or each.length is not None for each in args.ram):
        raise RequestError("with a QEMU command line --ram takes whole files, without offset and size")
    ram = {each.idstr: each.path for each in args.ram}
    if len(ram) < len(args.ram):
        raise RequestError("a block is given two files")
    disks = boot.disk_choice(args)
    if args.print:
        if args.shared and not ram:
            raise RequestError("only a running command can fill anonymous shared memory", hint="--ram names a file")
        boot.refuse_verify(args)
        plan = plan_restore(
            args.file,
            args.command,
            gate=options.gate(args),
            ram=ram,
            paused=args.paused,
            disks=disks,
            folder=args.run_dir,
        )
        boot.show_plan(args, plan)
        return 0
    with shown() as progress:
        report = restore_guest(
            args.file,
            args.command,
            gate=options.gate(args),
            shared=args.shared,
            ram=ram,
            paused=args.paused,
            check_digests=args.verify,
            disks=disks,
            folder=args.run_dir,
            observer=progress,
        )
    boot.show(args, report)
    return 0
