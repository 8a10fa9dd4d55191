"""What ``restore`` and ``clone`` share: options, and how guests are shown that were started or could be."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from parallel_fixedram.cli import common, output
from parallel_fixedram.cli.folding import print_folded
from parallel_fixedram.core.errors import HostError, RequestError
from parallel_fixedram.core.schemas import stamped

if TYPE_CHECKING:
    from parallel_fixedram.core.boot_options import DiskChoice
    from parallel_fixedram.core.reports.boot import BootReport
    from parallel_fixedram.verbs.restore_guest import Boot


def add_boot_options(parser: Any) -> None:
    """Options of a verb that starts QEMUs."""
    parser.add_argument("--paused", action="store_true", help="do not let the guest run")
    add_disk_options(parser)
    add_run_dir(parser)
    parser.add_argument(
        "--print", action="store_true", help="show the commands for a stock QEMU instead of running them"
    )


def add_disk_options(parser: Any) -> None:
    """Options for the disks of a QEMU that is started."""
    parser.add_argument(
        "--disks",
        choices=("overlay", "none"),
        help="overlay: each guest gets qcow2 overlays of its own on the images that FILE records, and the images stay "
        "as they are; none: the disks of the command line (default: overlay if FILE records any)",
    )
    parser.add_argument(
        "--disk-folder",
        metavar="DIR",
        help="where overlays go; they stay there when their guests end (default: beside socket and log, and removed "
        "with them)",
    )


def disk_choice(args: argparse.Namespace) -> DiskChoice:
    """What these options say.

    Raises:
        RequestError: they contradict each other.
    """
    from parallel_fixedram.core.boot_options import DiskChoice

    if args.disk_folder is not None and args.disks == "none":
        raise RequestError("--disk-folder is for overlays, and with --disks none there are none")
    return DiskChoice(overlays=None if args.disks is None else args.disks == "overlay", folder=args.disk_folder)


def add_run_dir(parser: Any) -> None:
    """The option that says where a QEMU's socket goes."""
    parser.add_argument(
        "--run-dir",
        type=common.output_path,
        metavar="FOLDER",
        help="where QMP socket, log and pid go, in FOLDER/N; must not exist, and is removed when QEMU is no longer "
        "needed; if a QEMU fails, its log stays (default: a new folder)",
    )


def refuse_verify(args: argparse.Namespace) -> None:
    """Refuse ``--verify`` beside ``--print``."""
    if args.verify:
        raise RequestError("--print cannot be combined with --verify: it reads no page", hint="verify checks a file")


def show(args: argparse.Namespace, report: BootReport) -> None:
    """Print a report.

    Raises:
        HostError: it cannot be printed; says which guests run now.
    """
    output.print_notes((*report.changes, *report.notes))
    try:
        output.print_report(report, _print, as_json=args.json)
        sys.stdout.flush()
    except (OSError, HostError) as error:
        told = "; ".join((*_guests(report), f"to end: {_ending(report)}"))
        raise HostError("cannot write to stdout", errno=error.errno or 0, hint=told) from error


def _guests(report: BootReport) -> list[str]:
    return [
        f"guest {number}: {guest.status}, pid {guest.pid}, QMP socket {guest.qmp}"
        for number, guest in enumerate(report.guests)
    ]


def _ending(report: BootReport) -> str:
    """The line that ends all guests of a report."""
    import shlex

    return f"parallel-fixedram guests stop {shlex.quote(report.guests[0].name.rpartition('/')[0])}"


def _print(report: BootReport) -> None:
    for guest in _guests(report):
        print_folded(guest)
    print_folded(f"to end {'it' if len(report.guests) == 1 else 'them'}: {_ending(report)}; guests lists all there are")
    seconds = report.seconds
    fill = f", {seconds.fill:.3f} s to fill memory meanwhile" if seconds.fill else ""
    print_folded(
        f"{report.how}: {seconds.total:.3f} s in all, {seconds.start:.3f} s until QEMU answered{fill}, "
        f"{seconds.load:.3f} s to load"
    )


def show_plan(args: argparse.Namespace, boot: Boot) -> None:
    """Print what could be started."""
    import json
    import shlex

    output.print_notes((*boot.changes, *boot.notes))
    requests = [
        {"execute": command, **({"arguments": arguments} if arguments else {})}
        for command, arguments in [*boot.source.requests(), *([("cont", {})] if boot.needs_cont else [])]
    ]
    if args.json:
        commands = [list(each) for each in boot.commands]
        told = {
            "verb": args.verb,
            "prepare": boot.disks.commands(),
            "commands": commands,
            "qmp": requests,
            "changes": list(boot.changes),
            "notes": list(boot.notes),
        }
        output.print_json(stamped("boot_plan", told))
        return
    for command in [*boot.disks.commands(), *boot.commands]:
        print(shlex.join(command))
    then = "; cont when query-migrate says that it is completed" if boot.needs_cont else ""
    print(f"# then, in a QMP monitor of each, after qmp_capabilities{then}:")
    for request in requests:
        print(json.dumps(request))
    if not boot.needs_cont and not boot.paused:
        print(f"# no cont: the guest was saved in the state {boot.state!r}, and stays so")
