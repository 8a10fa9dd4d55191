"""``disks``: the disks of a running QEMU, and overlays of them merged back."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from parallel_fixedram.cli import common, output, sources
from parallel_fixedram.cli.folding import print_folded, print_hanging
from parallel_fixedram.cli.progress import shown
from parallel_fixedram.core.errors import RequestError
from parallel_fixedram.core.units import format_size

if TYPE_CHECKING:
    from parallel_fixedram.core.reports.disks import DisksReport

_EXAMPLES = """  parallel-fixedram disks --qmp /tmp/qmp
  parallel-fixedram disks commit --qmp /tmp/qmp
  parallel-fixedram disks commit --libvirt vm"""


def register(subparsers: common.Subparsers[Any]) -> None:
    """Add the verb to the command line."""
    parser = common.add_verb(
        subparsers,
        "disks",
        summary="disks of a running QEMU: list them, merge back the overlays of save --disks overlay",
        about="List the disks that the guest of a running QEMU writes to, and their images; or merge the overlays\n"
        "that save --disks overlay made back into their images while the guest runs, and remove them. Unused\n"
        "overlays that a killed save left behind are removed as well.\n\n"
        "After a commit, files that were saved with these images cannot be restored: the images then hold what the\n"
        "guest has written since.",
        examples=_EXAMPLES,
    )
    parser.usage = (
        "%(prog)s [list | commit] --qmp SOCKET [options]\n       %(prog)s [list | commit] --libvirt DOMAIN [options]"
    )
    parser.add_argument(
        "action", nargs="?", choices=("list", "commit"), default="list", help="what to do (default list)"
    )
    sources.add_qmp_options(parser)
    sources.add_libvirt_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Carry out the verb; returns the exit code."""
    from parallel_fixedram.verbs.disks import commit_disks, list_disks
    from parallel_fixedram.verbs.open import open_libvirt, open_qemu

    qmp, uri = sources.qmp_arguments(args), sources.libvirt_uri(args)
    if bool(args.qmp) == bool(args.libvirt):
        raise RequestError("either --qmp SOCKET or --libvirt DOMAIN is needed: whose disks")
    with open_libvirt(args.libvirt, uri=uri) if args.libvirt else open_qemu(args.qmp, **qmp) as machine:
        if args.action == "commit":
            progress = shown()
            with progress:
                report = commit_disks(machine, observer=progress)
        else:
            report = list_disks(machine)
    output.print_notes(report.notes)
    output.print_report(report, _print, as_json=args.json)
    return 0


def _print(report: DisksReport) -> None:
    for path in report.removed:
        print_folded(f"{path}: never used, removed")
    for each in report.committed:
        print_folded(f"{each.device}: {format_size(each.bytes)} merged into {each.image}")
        for path in each.overlays:
            print_hanging("  removed  ", path)
    for attached in report.disks:
        disk = attached.disk
        print_folded(f"{disk.device}: {format_size(disk.size)}, node {disk.node}")
        for number, image in enumerate(disk.images):
            kind = "overlay" if number < attached.overlays else "image"
            print_hanging(f"  {kind:<8} ", f"{image.path}, {image.format}")
        if attached.shared:
            print_folded("  shared with other guests (share-rw): never saved")
        if attached.why_not:
            print_folded(f"  cannot go on with an overlay: {attached.why_not}")
    if not report.disks:
        print("the guest writes to no disk")
