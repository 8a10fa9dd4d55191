"""``plan``: how a save would write, and how long that would take; nothing is written."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from parallel_fixedram.cli import common, options, output, sources
from parallel_fixedram.cli.folding import print_folded, print_named
from parallel_fixedram.cli.progress import shown
from parallel_fixedram.core.units import format_count, format_size

if TYPE_CHECKING:
    from parallel_fixedram.core.reports.plan import PlanReport

_EXAMPLES = """  parallel-fixedram plan /tmp/guest.mr --guest random,size=256MiB \\
      --channels auto --experimental-multifd
  parallel-fixedram plan /tmp/vm.mr --qmp /tmp/qmp --calibrate"""


def register(subparsers: common.Subparsers[Any]) -> None:
    """Add the verb to the command line."""
    parser = common.add_verb(
        subparsers,
        "plan",
        summary="how a save would write, why, and how long that would take; nothing is written",
        about="Say how save, with the same options, would write: channels, page cache or not, which gaps are\n"
        "bridged; what writes into FILE's folder cost; and how long it would take. The guest is not stopped, and no\n"
        "file is made; but if it is not known yet what writes cost there, that is measured in a file without a name.",
        examples=_EXAMPLES,
    )
    parser.add_argument("file", metavar="FILE", help="the file that would be written; it may exist")
    parser.usage = sources.SOURCE_USAGE
    sources.add_source_options(parser)
    options.add_gate_options(parser, auto=True)
    options.add_writing_options(parser)
    options.add_capture_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Carry out the verb; returns the exit code."""
    from parallel_fixedram.verbs.plan import plan

    with shown() as progress:
        machine = sources.source(args, running=args.capture != "auto", progress=progress)
        report = plan(
            machine,
            args.file,
            gate=options.gate(args),
            writing=options.writing(args),
            capture=options.capturing(args),
        )
    output.print_report(report, _print, as_json=args.json)
    return 0


def _print(report: PlanReport) -> None:
    choice = report.choice
    print_folded(f"{report.file}: {format_size(report.ram)} of RAM, nothing is written")
    print_named("data", f"{report.data_pages} pages that may hold something, in {format_count(report.runs, 'run')}")
    print_named("writes", f"{report.calls} of {format_size(report.bytes)} in all")
    head, *why = options.choice_lines(choice)
    print_named("how", head)
    for reason in why:
        print_named("because", reason)
    waits = report.waits and choice.capture != "snapshot"  # which nothing of what is written adds to
    pause = ": the guest would stand still for about that long" if waits else ""
    print_named("predicted", f"{choice.predicted_write_seconds:.3f} s to the last write{pause}")
    print_named("", f"{choice.predicted_stable_seconds:.3f} s to stable storage, digests included")
    model = choice.model
    print_named("model", f"{model['source']}; what a write call and a byte take:")
    for name in ("direct", "buffered"):
        for channels, cost in model[name].items():
            print_named("", f"{name:<8} {format_count(int(channels), 'channel'):<10} {_cost(cost)}")
    print_named("", f"{'buffered, synced':<19} {_cost(model['stable'])}")


def _cost(cost: dict[str, float]) -> str:
    return f"{1e6 * cost['call']:>6.1f} us and {1e9 * cost['byte']:.3f} ns"
