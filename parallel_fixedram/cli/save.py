"""``save``: guest RAM into a mapped-ram file."""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from parallel_fixedram.cli import common, options, output, sources
from parallel_fixedram.cli.folding import print_folded, print_named
from parallel_fixedram.cli.progress import shown
from parallel_fixedram.core.errors import HostError, RequestError
from parallel_fixedram.core.observer import Observer
from parallel_fixedram.core.save_options import Disks, DisksMode, ImageKind
from parallel_fixedram.core.units import format_count, format_rate, format_size
from parallel_fixedram.core.uri import parse_uri

if TYPE_CHECKING:
    from collections.abc import Sequence

    from parallel_fixedram.core.reports.save import SaveReport, ShardTrace

_WORTH_A_LINE_SECONDS = 0.05

_EXAMPLES = """  parallel-fixedram save /tmp/guest.mr --guest dense,size=256MiB --overwrite
  parallel-fixedram save /tmp/guest.mr --guest text,size=256MiB --overwrite \\
      --channels 2 --experimental-multifd
  parallel-fixedram save /tmp/guest.mr --guest hot,size=256MiB \\
      --capture rounds --overwrite
a running QEMU that was started with -qmp unix:/tmp/qmp,server=on,wait=off:
  parallel-fixedram save /tmp/vm.mr --qmp /tmp/qmp --disks overlay \\
      --channels 2 --experimental-multifd
a running domain of libvirt, into an image that virsh restore loads:
  parallel-fixedram save /tmp/vm.save --libvirt vm --disks none
with RAM of your own guest, which must be stopped:
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
        "stopped only while its pages are read, and continues even if this command is killed. The same goes for a\n"
        "domain of libvirt; FILE is then an image for virsh restore.\n\n"
        "A guest needs the disks of the same instant. With --disks overlay the images of all disks stay what they\n"
        "were then, and the guest goes on with qcow2 overlays that QEMU makes. restore and clone give each guest\n"
        "overlays of its own on the same images. disks commit merges the overlays back while the guest runs.",
        examples=_EXAMPLES,
    )
    parser.add_argument("file", metavar="FILE", help="the file to write; an existing one is an error")
    sources.add_source_options(parser)
    options.add_gate_options(parser, auto=True)
    options.add_writing_options(parser)
    options.add_capture_options(parser)
    _add_disk_options(parser.add_argument_group("disks of a QEMU"))
    _add_domain_options(parser.add_argument_group("a domain of libvirt"))
    parser.usage = sources.SOURCE_USAGE
    result = parser.add_argument_group("the file")
    result.add_argument("--overwrite", action="store_true", help="replace FILE once the new one is complete")
    result.add_argument(
        "--durability",
        choices=("full", "none"),
        default="full",
        help="full (default): FILE survives a power cut once this command is done; none: no sync",
    )
    result.add_argument(
        "--cache",
        choices=("keep", "drop"),
        default="keep",
        help="whether FILE may stay in the page cache (default keep); drop removes it once FILE is on stable storage",
    )
    result.add_argument(
        "--trace",
        type=common.output_path,
        metavar="PATH",
        help="write to PATH which worker wrote which part, and when: one JSON object a line",
    )
    parser.set_defaults(run=run)


def _add_disk_options(group: Any) -> None:
    group.add_argument(
        "--disks",
        choices=[str(mode) for mode in DisksMode],
        help="what becomes of the disks that the guest writes to. overlay: the guest goes on with overlays, and the "
        "images stay as they were at that instant; none: disks are left alone; refuse: a disk is an error. Default: "
        "refuse if the guest runs, none if it is stopped and stays so",
    )
    group.add_argument("--disk-folder", metavar="DIR", help="where to make overlays (default: each beside its image)")


def _add_domain_options(group: Any) -> None:
    group.add_argument(
        "--image",
        choices=[str(kind) for kind in ImageKind],
        help="what FILE is. libvirt (default): a save image that virsh restore loads; plain: the file that QEMU loads",
    )
    group.add_argument(
        "--stop",
        action="store_true",
        help="end the domain once FILE is complete, as virsh save does; it stands still from that instant on. If the "
        "save fails, the domain goes on",
    )


def run(args: argparse.Namespace) -> int:
    """Carry out the verb; returns the exit code."""
    from parallel_fixedram.core.save_options import Cache, Durability, Publishing
    from parallel_fixedram.verbs.save import save

    progress = shown()
    capture = options.capturing(args)
    # with auto a built-in guest does not run, so that measurements are of the same contents each time
    machine = sources.source(args, running=args.capture != "auto", stop=args.stop, progress=progress)
    if (args.image or args.stop) and not args.libvirt:
        raise RequestError("--image and --stop are for --libvirt")
    if args.trace and os.path.realpath(args.trace) == os.path.realpath(parse_uri(args.file).path):
        raise RequestError(f"--trace {args.trace!r} would replace the file that is saved")

    shards: list[ShardTrace] = []
    with progress:
        report = save(
            machine,
            args.file,
            gate=options.gate(args),
            writing=replace(options.writing(args), time_writes=bool(args.trace)),
            capture=capture,
            publishing=Publishing(
                image=args.image and ImageKind(args.image),
                overwrite=args.overwrite,
                durability=Durability(args.durability),
                cache=Cache(args.cache),
            ),
            disks=_disks(args),
            observer=_Traced(progress, shards) if args.trace else progress,
        )
    if args.trace:
        _write_trace(args.trace, shards)
    output.print_notes(report.notes)
    output.print_report(report, _print, as_json=args.json)
    return 0


def _disks(args: argparse.Namespace) -> Disks:
    if (args.disks or args.disk_folder) and not (args.qmp or args.libvirt):
        raise RequestError("--disks and --disk-folder are for --qmp and --libvirt: nothing else has disks")
    if args.disk_folder and args.disks != DisksMode.OVERLAY:
        raise RequestError("--disk-folder is for --disks overlay")
    return Disks(mode=args.disks, folder=args.disk_folder)


class _Traced(Observer):
    """Keeps who wrote which part of the file when, and shows what another observer shows."""

    def __init__(self, shown: Observer, shards: list[ShardTrace]) -> None:
        self._shown = shown
        self._shards = shards

    def phase(self, name: str, total: int = 0) -> None:
        """Show it (Observer.phase)."""
        self._shown.phase(name, total)

    def advanced(self, size: int) -> None:
        """Show it (Observer.advanced)."""
        self._shown.advanced(size)

    def note(self, text: str) -> None:
        """Show it (Observer.note)."""
        self._shown.note(text)

    def shard(self, trace: ShardTrace) -> None:
        """Keep it (Observer.shard)."""
        self._shards.append(trace)
        self._shown.shard(trace)


def _write_trace(path: str, shards: Sequence[ShardTrace]) -> None:
    import json
    from dataclasses import asdict

    try:
        with open(path, "w", encoding="ascii") as file:
            file.writelines(json.dumps(asdict(shard)) + "\n" for shard in shards)
    except OSError as error:
        raise HostError.from_os(f"the save is done, but its trace cannot be written to {path!r}", error) from error


def _print_what_loads_it(report: SaveReport) -> None:
    from parallel_fixedram.core.targets import RAM_ONLY_MACHINE

    if report.image == ImageKind.LIBVIRT:
        print_named("image", "of libvirt: virsh restore loads it")
    elif report.machine != RAM_ONLY_MACHINE:  # a name without a version means another machine in another QEMU
        print_named("machine", f"{report.machine}: a QEMU that loads the file is started with -M {report.machine}")


def _print(report: SaveReport) -> None:
    seconds, size = report.seconds, report.bytes
    data = sum(block.data_pages for block in report.blocks)
    zero = sum(block.zero_pages for block in report.blocks)
    blocks = format_count(len(report.blocks), "RAMBlock")
    print_folded(f"{report.file}: {format_size(size.ram)} of RAM in {blocks}")
    head, *why = options.choice_lines(report.choice)
    print_named("how", head)
    for reason in why:
        print_named("because", reason)
    print_named("pages", f"{data} with data, {zero} zero")
    cached = "" if size.cached is None else f", {format_size(size.cached)} in the page cache"
    print_named("file", f"{format_size(size.file)} long, {format_size(size.allocated)} on disk{cached}")
    moved = sum(each.seconds for each in report.rounds)
    rounds = format_count(len(report.rounds), "round")
    _print_what_loads_it(report)
    print_named("written", f"{format_size(size.written)} in {rounds}, {format_rate(size.written, moved)}")
    print_named("save", f"{seconds.total:.3f} s, {seconds.sync + seconds.publish:.3f} s of it to sync and publish")
    if seconds.sync_disks >= _WORTH_A_LINE_SECONDS:
        print_named("disks", f"synced for {seconds.sync_disks:.3f} s before the guest was stopped")
    choice = report.choice
    if choice.measured_by_predicted is not None:
        print_named(
            "predicted",
            f"{choice.predicted_stable_seconds:.3f} s, measured {choice.measured_stable_seconds:.3f} s: "
            f"{choice.measured_by_predicted:.2f} times that",
        )
    if seconds.pause:
        stop, ram, cont = (1000 * each for each in (seconds.stop, seconds.ram, seconds.cont))
        frozen = f"disks {1000 * seconds.disks:.1f}, " if report.disks else ""
        copy = f"copy for the check {1000 * seconds.copy:.1f}, " if seconds.copy else ""
        state = f", device state {1000 * seconds.device_state:.1f} ms meanwhile" if seconds.device_state else ""
        print_named(
            "pause",
            f"guest stopped for {1000 * seconds.pause:.1f} ms: "
            f"stop {stop:.1f}, RAM {ram:.1f}, {frozen}{copy}cont {cont:.1f}{state}",
        )
    for disk in report.disks:
        print_named("disk", f"{disk.device}: {disk.image} stays as it is, the guest goes on with {disk.overlay}")
    if (taken := report.snapshot) is not None:
        waited = format_count(taken.faults, "write")
        print_named(
            "waits", f"{waited} of the guest waited for a copy, {1000 * taken.fault_seconds.max:.1f} ms at most"
        )
    if any(each.name == "check" for each in report.phases):
        print_named("checked", "every page is what RAM held at that instant")
