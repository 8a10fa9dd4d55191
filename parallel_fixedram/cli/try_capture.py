"""``try-capture``: does a snapshot of this guest, on this host, hold what it should?"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from parallel_fixedram.cli import common, options, output, sources
from parallel_fixedram.cli.folding import print_folded, print_named, print_table
from parallel_fixedram.cli.progress import shown
from parallel_fixedram.core.errors import RequestError
from parallel_fixedram.core.save_options import TRIAL_SNAPSHOTS
from parallel_fixedram.core.units import format_count, format_size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from parallel_fixedram.core.reports.try_capture import TriedSnapshot, TryCaptureReport

_EXAMPLES = """  parallel-fixedram try-capture --qmp /tmp/qmp
  parallel-fixedram try-capture --qmp /tmp/qmp --count 5 --folder /var/tmp"""

_FIGURES: Sequence[tuple[str, Callable[[TriedSnapshot], float]]] = (
    ("pause", lambda each: each.pause),
    ("  stop", lambda each: each.stop),
    ("  device state", lambda each: each.device_state),
    ("  protected again", lambda each: each.fix),
    ("  cont", lambda each: each.cont),
    ("longest wait of a write", lambda each: each.fault_seconds.max),
    ("99 % of the waits below", lambda each: each.fault_seconds.p99),
    ("save", lambda each: each.total),
)


def register(subparsers: common.Subparsers[Any]) -> None:
    """Add the verb to the command line."""
    parser = common.add_verb(
        subparsers,
        "try-capture",
        summary="try whether snapshots of a running QEMU are right on this host",
        about="Save the guest of a running QEMU with --capture snapshot several times. Each time all of its RAM is\n"
        "copied while it is stopped, and the file is compared with the copy, page by page, and thrown away. The guest\n"
        "is stopped for as long as a copy takes, and a copy needs as much memory as the guest has data.\n\n"
        f"The result of {TRIAL_SNAPSHOTS} snapshots or more is remembered for this host, kernel and QEMU: --capture\n"
        "auto takes snapshots of guests under KVM only if it was good, and of no guest if a page was wrong.\n\n"
        "Exit code 1: a page was wrong, or a snapshot failed.",
        examples=_EXAMPLES,
    )
    parser.usage = "%(prog)s --qmp SOCKET [options]"
    sources.add_qmp_options(parser)
    parser.add_argument(
        "--count", type=int, default=TRIAL_SNAPSHOTS, metavar="N", help=f"how many (default {TRIAL_SNAPSHOTS})"
    )
    parser.add_argument("--folder", metavar="DIR", help="where files are written (default: where temporary files go)")
    options.add_snapshot_options(parser.add_argument_group("snapshots"))
    options.add_gate_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Carry out the verb; returns the exit code."""
    from parallel_fixedram.verbs.open import open_qemu
    from parallel_fixedram.verbs.try_capture import try_capture

    qmp = sources.qmp_arguments(args)
    if not args.qmp:
        raise RequestError("--qmp SOCKET is needed: whose snapshots are to be tried")
    progress = shown()
    with progress:
        report = try_capture(
            functools.partial(open_qemu, args.qmp, **qmp),
            count=args.count,
            folder=args.folder,
            gate=options.gate(args),
            capture=options.snapshot_limits(args),
            observer=progress,
        )
    output.print_report(report, _print, as_json=args.json)
    return 0 if report.passed else 1


def _print(report: TryCaptureReport) -> None:
    print_folded(
        f"{format_count(len(report.snapshots), 'snapshot')} of {report.machine}, {format_size(report.ram)} of RAM, "
        f"QEMU {report.qemu_version}, {report.accelerator}, Linux {report.kernel}"
    )
    print_named("pages", f"{report.wrong_pages} wrong")
    for number, each in enumerate(report.snapshots, 1):
        if each.given_up:
            print_named("given up", f"snapshot {number}: {each.given_up}")
        elif each.wrong_pages:
            print_named("wrong", f"snapshot {number}: {format_count(each.wrong_pages, 'page')}")
    if right := [each for each in report.snapshots if not each.given_up and not each.wrong_pages]:
        rows = [(name, *_spread([figure(each) for each in right])) for name, figure in _FIGURES]
        print_table("  {:<24} {:>12} {:>12}", ("", "median", "most"), rows)
    print_folded(_verdict(report))


def _spread(seconds: Sequence[float]) -> tuple[str, str]:
    """Median and most."""
    import statistics

    return f"{1000 * statistics.median(seconds):.1f} ms", f"{1000 * max(seconds):.1f} ms"


def _verdict(report: TryCaptureReport) -> str:
    if report.remembered is None:
        kept = f"not remembered, {TRIAL_SNAPSHOTS} without a fault are" if report.passed else "not remembered"
    else:
        kept = "remembered for this host" if report.remembered else "not remembered: the cache folder cannot be written"
    return f"{'passed' if report.passed else 'failed'}; {kept}"
