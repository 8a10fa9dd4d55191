"""``inspect``: what a file says of itself, or what would be saved of a running QEMU."""

from __future__ import annotations

import argparse
from typing import Any

from parallel_fixedram.cli import common, output
from parallel_fixedram.core.errors import RequestError
from parallel_fixedram.core.units import format_size

_EXAMPLES = """  parallel-fixedram inspect --qmp /tmp/qmp
  parallel-fixedram inspect /tmp/guest.mr
  parallel-fixedram inspect --json file:/tmp/guest.mr"""


def register(subparsers: common.Subparsers[Any]) -> None:
    """Add the verb to the command line."""
    parser = common.add_verb(
        subparsers,
        "inspect",
        summary="what a file says: machine, capabilities, RAMBlocks, offsets, device sections; or a running QEMU",
        about="Show what FILE says of itself; no page is read. With --qmp: what would be saved of a running QEMU, and\n"
        "how each RAMBlock is reached; the guest is not stopped.",
        examples=_EXAMPLES,
    )
    parser.add_argument("file", metavar="FILE", nargs="?", help="a mapped-ram file, by QEMU or by us")
    common.add_qmp_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Carry out the verb; returns the exit code."""
    from parallel_fixedram import app

    if bool(args.file) == bool(args.qmp):
        raise RequestError("exactly one of FILE and --qmp SOCKET is needed")
    qmp = common.qmp_arguments(args)
    if args.qmp:
        with app.open_qemu(args.qmp, **qmp) as machine:
            guest = machine.describe()
        if args.json:
            output.print_json(guest)
        else:
            _print_guest(guest)
        return 0
    with app.open_image(args.file) as image:
        description = image.describe()
    if args.json:
        output.print_json(description)
    else:
        _print(description)
    for warning in description["warnings"]:
        output.warn(f"note: {warning}")
    return 0


def _print(description: dict[str, Any]) -> None:
    size = description["size"]
    print(f"{description['file']}: mapped-ram file of {format_size(size)} ({size} bytes)")
    print(f"machine       {_machine(description)}")
    print(f"capabilities  {', '.join(description['capabilities'])}")
    if description["uuid"]:
        print(f"uuid          {description['uuid']}")
    print(f"stream        {description['offset']:#x} to {description['stream_end']:#x}")
    print(f"digests       {'one a page, XXH3-64' if description['digests'] else 'none'}")
    print(f"clone stream  {'at ' + hex(description['clone_offset']) if description['clone_offset'] else 'none'}")
    print(
        f"{'RAMBlock':<28} {'used_length':>14} {'present':>9} {'pages':>9} {'bitmap_offset':>15} {'pages_offset':>15}"
    )
    for block in description["blocks"]:
        if block["absent"]:
            print(f"{block['idstr']:<28} {block['used_length']:>#14x} not stored (shared RAM)")
            continue
        print(
            f"{block['idstr']:<28} {block['used_length']:>#14x} {block['data_pages']:>9} {block['pages']:>9} "
            f"{block['bitmap_offset']:>#15x} {block['pages_offset']:>#15x}"
        )
    if description["devices"]:
        print(f"{'device section':<44} {'instance':>9} {'version':>8} {'offset':>14} {'length':>8}")
    for device in description["devices"]:
        print(
            f"{device['name']:<44} {device['instance_id']:>9} {device['version_id']:>8} "
            f"{device['offset']:>#14x} {device['length']:>8}"
        )


def _machine(described: dict[str, Any]) -> str:
    return f"{described['machine']}, {described['target']}" if described["target"] else str(described["machine"])


def _print_guest(guest: dict[str, Any]) -> None:
    print(f"{guest['qmp']}: QEMU {guest['qemu_version']}, process {guest['pid']}, {guest['status']}")
    print(f"machine       {_machine(guest)}")
    print(f"{'RAMBlock':<28} {'used_length':>14} {'host page':>10} {'touched':>9} {'pages':>9}  memory")
    for block in guest["blocks"]:
        path = f", {block['path']}" if block["path"] else ""
        print(
            f"{block['idstr']:<28} {block['used_length']:>#14x} {format_size(block['host_page_size']):>10} "
            f"{block['data_pages']:>9} {block['pages']:>9}  {block['memory']}{path}"
        )
