"""``inspect``: what a file says of itself, or what would be saved of a running QEMU."""

from __future__ import annotations

import argparse
from typing import Any

from parallel_fixedram.cli import common, output
from parallel_fixedram.cli.folding import print_hanging, print_table
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
    print_hanging("capabilities  ", ", ".join(description["capabilities"]))
    if description["uuid"]:
        print(f"uuid          {description['uuid']}")
    print(f"stream        {description['offset']:#x} to {description['stream_end']:#x}")
    print(f"digests       {'one a page, XXH3-64' if description['digests'] else 'none'}")
    print(f"clone stream  {'at ' + hex(description['clone_offset']) if description['clone_offset'] else 'none'}")
    print_table(
        "{:<28} {:>14} {:>9} {:>9} {:>15} {:>15}",
        ("RAMBlock", "used_length", "present", "pages", "bitmap_offset", "pages_offset"),
        [_block_cells(block) for block in description["blocks"]],
    )
    if description["devices"]:
        print_table(
            "{:<44} {:>9} {:>8} {:>14} {:>8}",
            ("device section", "instance", "version", "offset", "length"),
            [
                (
                    device["name"],
                    str(device["instance_id"]),
                    str(device["version_id"]),
                    f"{device['offset']:#x}",
                    str(device["length"]),
                )
                for device in description["devices"]
            ],
        )


def _block_cells(block: dict[str, Any]) -> tuple[str, ...]:
    length = f"{block['used_length']:#x}"
    if block["absent"]:
        return block["idstr"], length, "not stored (shared RAM)", "", "", ""
    counts = str(block["data_pages"]), str(block["pages"])
    return block["idstr"], length, *counts, f"{block['bitmap_offset']:#x}", f"{block['pages_offset']:#x}"


def _machine(described: dict[str, Any]) -> str:
    return f"{described['machine']}, {described['target']}" if described["target"] else str(described["machine"])


def _print_guest(guest: dict[str, Any]) -> None:
    print(f"{guest['qmp']}: QEMU {guest['qemu_version']}, process {guest['pid']}, {guest['status']}")
    print(f"machine       {_machine(guest)}")
    print_table(
        "{:<28} {:>14} {:>10} {:>9} {:>9}  {}",
        ("RAMBlock", "used_length", "host page", "touched", "pages", "memory"),
        [
            (
                block["idstr"],
                f"{block['used_length']:#x}",
                format_size(block["host_page_size"]),
                str(block["data_pages"]),
                str(block["pages"]),
                ", ".join(filter(None, (block["memory"], block["path"]))),
            )
            for block in guest["blocks"]
        ],
    )
