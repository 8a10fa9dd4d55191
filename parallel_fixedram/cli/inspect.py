"""``inspect``: what a file says of itself."""

from __future__ import annotations

import argparse
from typing import Any

from parallel_fixedram.cli import common
from parallel_fixedram.core.units import format_size

_EXAMPLES = """  parallel-fixedram inspect /tmp/guest.mr
  parallel-fixedram inspect --json file:/tmp/guest.mr"""


def register(subparsers: common.Subparsers[Any]) -> None:
    """Add the verb to the command line."""
    parser = common.add_verb(
        subparsers,
        "inspect",
        summary="what a file says: machine, capabilities, RAMBlocks, offsets, device sections",
        about="Show what FILE says of itself. No page is read.",
        examples=_EXAMPLES,
    )
    parser.add_argument("file", metavar="FILE", help="a mapped-ram file, by QEMU or by us")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Carry out the verb; returns the exit code."""
    from parallel_fixedram import app

    with app.open_image(args.file) as image:
        description = image.describe()
    if args.json:
        common.print_json(description)
    else:
        _print(description)
    for warning in description["warnings"]:
        common.warn(f"note: {warning}")
    return 0


def _print(description: dict[str, Any]) -> None:
    size = description["size"]
    print(f"{description['file']}: mapped-ram file of {format_size(size)} ({size} bytes)")
    print(f"machine       {description['machine']}")
    print(f"capabilities  {', '.join(description['capabilities'])}")
    if description["uuid"]:
        print(f"uuid          {description['uuid']}")
    print(f"stream        {description['offset']:#x} to {description['stream_end']:#x}")
    print(f"digests       {'one a page, XXH3-64' if description['digests'] else 'none'}")
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
