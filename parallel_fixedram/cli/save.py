"""``save``: guest RAM into a mapped-ram file."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from parallel_fixedram.cli import common
from parallel_fixedram.core.errors import RequestError
from parallel_fixedram.core.units import format_count, format_rate, format_size

if TYPE_CHECKING:
    from parallel_fixedram.core.protocols import Machine
    from parallel_fixedram.core.report import SaveReport

MAX_ROUNDS = 16

_EXAMPLES = """  parallel-fixedram save /tmp/guest.mr --guest dense,size=256MiB --overwrite
  parallel-fixedram save /tmp/guest.mr --guest text,size=256MiB --overwrite --channels 2 --experimental-multifd
a running QEMU that was started with -qmp unix:/tmp/qmp,server=on,wait=off:
  parallel-fixedram save /tmp/vm.mr --qmp /tmp/qmp --channels 2 --experimental-multifd
with RAM of your own guest, which has to stand still:
  parallel-fixedram save file:/backup/vm.mr --ram pc.ram=/dev/shm/vm-ram"""


def register(subparsers: common.Subparsers[Any]) -> None:
    """Add the verb to the command line."""
    parser = common.add_verb(
        subparsers,
        "save",
        summary="save RAM into a file in which every page has a fixed offset",
        about="Save the RAM of one source into FILE, a QEMU mapped-ram file. FILE gets its name only when it is\n"
        "complete and on stable storage. FILE may be written as file:PATH[,offset=N].\n\n"
        "With --qmp the whole guest is saved, RAM and device state, so that it can be restored and cloned. It is\n"
        "stopped only while its pages are read, and goes on even if this command is killed. Disks are not saved.",
        examples=_EXAMPLES,
    )
    parser.add_argument("file", metavar="FILE", help="the file to write; an existing one is an error")
    source = parser.add_argument_group("source (exactly one)")
    source.add_argument("--guest", metavar="SPEC", help="the built-in guest, such as dense,size=1GiB,seed=7")
    common.add_qmp_options(source)
    common.add_ram_option(source, "shared memory of a guest; whoever runs on it has to be stopped")
    common.add_gate_options(parser)
    parser.add_argument(
        "--direct-io", choices=("auto", "on", "off"), default="auto", help="bypass the page cache (default auto)"
    )
    parser.add_argument("--live", action="store_true", help="let the guest run while rounds of dirty pages are saved")
    parser.add_argument(
        "--max-rounds", type=int, metavar="N", help=f"most rounds of a live save (default {MAX_ROUNDS})"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace FILE once the new one is complete")
    parser.add_argument(
        "--durability",
        choices=("full", "none"),
        default="full",
        help="full (default): FILE survives a power cut once this command is done; none: no sync",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Carry out the verb; returns the exit code."""
    from parallel_fixedram import app
    from parallel_fixedram.core.report import to_json

    if sum(map(bool, (args.guest, args.qmp, args.ram))) != 1:
        raise RequestError("exactly one source is needed: --guest SPEC, --qmp SOCKET or --ram IDSTR=PATH")
    qmp = common.qmp_arguments(args)
    if args.max_rounds is not None and not args.live:
        raise RequestError("--max-rounds is for --live")

    def machine() -> Machine:
        if args.guest:
            return app.open_guest(args.guest, running=args.live)
        if args.qmp:
            return app.open_qemu(args.qmp, **qmp)
        return app.open_ram([option.ram_file() for option in args.ram])

    with common.ProgressBar() as progress:
        report = app.save(
            machine,
            args.file,
            **common.gate_arguments(args),
            direct_io=args.direct_io,
            live=args.live,
            max_rounds=MAX_ROUNDS if args.max_rounds is None else args.max_rounds,
            overwrite=args.overwrite,
            durability=args.durability,
            progress=progress,
        )
    for note in report.notes:
        common.warn(f"note: {note}")
    if args.json:
        common.print_json(to_json(report))
    else:
        _print(report)
    return 0


def _print(report: SaveReport) -> None:
    seconds, size = report.seconds, report.bytes
    data = sum(block.data_pages for block in report.blocks)
    zero = sum(block.zero_pages for block in report.blocks)
    how = "direct I/O" if report.direct_io else "page cache"
    channels = format_count(report.channels, "channel")
    blocks = format_count(len(report.blocks), "RAMBlock")
    print(f"{report.file}: {format_size(size.ram)} of RAM in {blocks}, {channels}, {how}")
    print(f"  pages     {data} with data, {zero} zero")
    print(f"  file      {format_size(size.file)} long, {format_size(size.allocated)} on disk")
    moved = sum(each.seconds for each in report.rounds)
    rounds = format_count(len(report.rounds), "round")
    print(f"  written   {format_size(size.written)} in {rounds}, {format_rate(size.written, moved)}")
    print(f"  save      {seconds.total:.3f} s, {seconds.sync + seconds.publish:.3f} s of it to sync and publish")
    if seconds.pause:
        stop, ram, cont = (1000 * each for each in (seconds.stop, seconds.ram, seconds.cont))
        state = f", device state {1000 * seconds.device_state:.1f} ms meanwhile" if seconds.device_state else ""
        print(
            f"  pause     guest stopped for {1000 * seconds.pause:.1f} ms: stop {stop:.1f}, RAM {ram:.1f}, "
            f"cont {cont:.1f}{state}"
        )
