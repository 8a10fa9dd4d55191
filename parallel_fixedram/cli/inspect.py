"""``inspect``: what a file says of itself, or what would be saved of a running QEMU."""

from __future__ import annotations

import argparse
from datetime import datetime
from typing import TYPE_CHECKING, Any

from parallel_fixedram.cli import common, output, sources
from parallel_fixedram.cli.folding import print_folded, print_hanging, print_table
from parallel_fixedram.core.errors import RequestError
from parallel_fixedram.core.units import format_size

if TYPE_CHECKING:
    from parallel_fixedram.core.disks import DiskImage
    from parallel_fixedram.core.reports.inspect import FileBlock, InspectQemuReport, InspectReport
    from parallel_fixedram.core.reports.libvirt import InspectLibvirtReport

_EXAMPLES = """  parallel-fixedram inspect --qmp /tmp/qmp
  parallel-fixedram inspect /tmp/guest.mr
  parallel-fixedram inspect --json file:/tmp/guest.mr"""


def register(subparsers: common.Subparsers[Any]) -> None:
    """Add the verb to the command line."""
    parser = common.add_verb(
        subparsers,
        "inspect",
        summary="what a file says: machine, capabilities, RAMBlocks, offsets, device sections; or a running QEMU",
        about="Show what FILE says of itself; no page is read. For a libvirt save image the domain is shown as well,\n"
        "even if the image is incomplete, or in a format without pages at fixed offsets. With --qmp: what would be\n"
        "saved of a running QEMU, and how each RAMBlock is reached; the guest is not stopped.",
        examples=_EXAMPLES,
    )
    parser.add_argument(
        "file", metavar="FILE", nargs="?", help="a mapped-ram file, by QEMU or by us, or a save image by libvirt"
    )
    sources.add_qmp_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Carry out the verb; returns the exit code."""
    from parallel_fixedram.core.reports.inspect import InspectReport
    from parallel_fixedram.verbs.inspect import inspect, inspect_qemu

    if bool(args.file) == bool(args.qmp):
        raise RequestError("exactly one of FILE and --qmp SOCKET is needed")
    qmp = sources.qmp_arguments(args)
    if args.qmp:
        guest = inspect_qemu(args.qmp, **qmp)
        output.print_report(guest, _print_guest, as_json=args.json)
        return 0
    report = inspect(args.file)
    output.print_report(report, _print if isinstance(report, InspectReport) else _print_image, as_json=args.json)
    output.print_notes(report.warnings)
    return 0


def _print_image(report: InspectReport | InspectLibvirtReport) -> None:
    """What libvirt has in front of the stream; text from its XML may be anybody's."""
    image, size = report.libvirt, report.size
    assert image
    complete = "" if image.complete else ", NOT COMPLETE"
    print_folded(f"{report.file}: libvirt save image of {format_size(size)} ({size} bytes), {image.format}{complete}")
    print_hanging("domain        ", _printable(", ".join(filter(None, (image.domain, image.uuid)))))
    print_hanging(
        "memory        ", f"{format_size(image.memory)}, {'running' if image.running else 'paused'} when saved"
    )
    for disk in image.disks:
        print_hanging("disk          ", _printable(f"{disk.device}, {disk.kind}, {disk.source or 'no medium'}"))
    print_hanging("XML           ", f"{image.xml_bytes} bytes, room for {image.xml_room}")


def _printable(text: str) -> str:
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def _print(report: InspectReport) -> None:
    size = report.size
    if report.libvirt:
        _print_image(report)
    else:
        print_folded(f"{report.file}: mapped-ram file of {format_size(size)} ({size} bytes)")
    print_hanging("machine       ", _machine(report))
    print_hanging("capabilities  ", ", ".join(report.capabilities))
    if report.uuid:
        print_hanging("uuid          ", report.uuid)
    print_hanging("stream        ", f"{report.offset:#x} to {report.stream_end:#x}")
    print_hanging("digests       ", f"one a page, XXH3-64; of all: {report.digest}" if report.digest else "none")
    print_hanging("clone stream  ", f"at {report.clone_offset:#x}" if report.clone_offset else "none")
    print_table(
        "{:<28} {:>14} {:>9} {:>9} {:>15} {:>15}",
        ("RAMBlock", "used_length", "present", "pages", "bitmap_offset", "pages_offset"),
        [_block_cells(block) for block in report.blocks],
    )
    for disk in report.disks:
        print_folded(f"disk {disk.device} of {format_size(disk.size)}, node {disk.node}")
        for image in disk.images:
            print_hanging("  image  ", f"{image.path}, {image.format}, {image.bytes} bytes{_written(image)}")
    if report.devices:
        print_table(
            "{:<44} {:>9} {:>8} {:>14} {:>8}",
            ("device section", "instance", "version", "offset", "length"),
            [
                (
                    device.name,
                    str(device.instance_id),
                    str(device.version_id),
                    f"{device.offset:#x}",
                    str(device.length),
                )
                for device in report.devices
            ],
        )


def _written(image: DiskImage) -> str:
    if not image.modified_ns:
        return ""
    when = datetime.fromtimestamp(image.modified_ns / 1e9).astimezone().isoformat(" ", "milliseconds")
    return f", last written {when}"


def _block_cells(block: FileBlock) -> tuple[str, ...]:
    length = f"{block.used_length:#x}"
    if block.absent:
        return block.idstr, length, "not stored (shared RAM)", "", "", ""
    counts = str(block.data_pages), str(block.pages)
    return block.idstr, length, *counts, f"{block.bitmap_offset:#x}", f"{block.pages_offset:#x}"


def _machine(described: InspectReport | InspectQemuReport) -> str:
    return f"{described.machine}, {described.target}" if described.target else described.machine


def _print_guest(guest: InspectQemuReport) -> None:
    print_folded(f"{guest.qmp}: QEMU {guest.qemu_version}, process {guest.pid}, {guest.status}")
    print_hanging("machine       ", _machine(guest))
    because = f", because {guest.no_snapshot}" if guest.no_snapshot else ""
    print_hanging("capture       ", f"{guest.capture}{because}")
    print_table(
        "{:<28} {:>14} {:>10} {:>9} {:>9}  {}",
        ("RAMBlock", "used_length", "host page", "touched", "pages", "memory"),
        [
            (
                block.idstr,
                f"{block.used_length:#x}",
                format_size(block.host_page_size),
                str(block.data_pages),
                str(block.pages),
                ", ".join(filter(None, (block.memory, block.path))),
            )
            for block in guest.blocks
        ],
    )
