"""``bench check``: is this host fit for measurements now?"""

from __future__ import annotations

import argparse
import os
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from parallel_fixedram.cli import common, output
from parallel_fixedram.cli.findings import print_findings
from parallel_fixedram.cli.folding import print_folded
from parallel_fixedram.core.errors import HostError, RequestError
from parallel_fixedram.core.schemas import stamped

if TYPE_CHECKING:
    from parallel_fixedram.core.reports.doctor import Finding
    from parallel_fixedram.experiments.conditions import Needs
    from parallel_fixedram.experiments.scenario import Scenario


def register(subparsers: common.Subparsers[Any]) -> None:
    """Add the sub-verb to ``bench``."""
    parser = common.add_verb(
        subparsers,
        "check",
        summary="whether this host is fit for measurements now",
        about="Look at what makes measurements slower or spreads them: governor and turbo of processors, other load,\n"
        "steal time, quotas, huge pages, memory, limits of dirty memory, free space. Each line has a verdict: ok;\n"
        "absent, where this host does not show it; noisy, with what to do about it; refused, if a run would fail.\n"
        "bench run checks the same, warns, and stores what it found with the results.\n\n"
        "Exit code 0: nothing is noisy or refused. 1: something is.",
        examples="  parallel-fixedram bench check\n  parallel-fixedram bench check channels --folder /var/tmp",
    )
    parser.add_argument(
        "scenarios", nargs="*", metavar="SCENARIO", help="what is to be run: its memory and files have to fit"
    )
    common.add_folder_option(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Carry out ``bench check``; returns the exit code."""
    import tempfile

    from parallel_fixedram.experiments.conditions import Needs, noisy
    from parallel_fixedram.experiments.planning import make_plan, room
    from parallel_fixedram.experiments.scenario import find_scenario

    rooms = [room(make_plan(find_scenario(name).cases)) for name in args.scenarios] or [Needs()]
    needs = Needs(memory=max(each.memory for each in rooms), file=max(each.file for each in rooms))
    folder = args.folder or tempfile.gettempdir()
    findings = _look(folder, needs)
    wrong = noisy(findings)
    if args.json:
        told = {
            "verb": "bench check",
            "folder": folder,
            "ok": not wrong,
            "findings": [asdict(each) for each in findings],
        }
        output.print_json(stamped("bench_check", told))
    else:
        print_findings(findings)
        named = ", ".join(each.what for each in wrong)
        print_folded(f"measurements would suffer from: {named}" if wrong else "nothing that would disturb was found")
    return 1 if wrong else 0


def warned(scenario: Scenario, folder: str) -> list[Finding]:
    """What is found before a scenario is run; warns of what would disturb it."""
    from parallel_fixedram.experiments.conditions import noisy
    from parallel_fixedram.experiments.planning import make_plan, room

    findings = _look(folder, room(make_plan(scenario.cases)))
    for each in noisy(findings):
        output.warn(f"{each.verdict}: {each.what}: {each.detail}")
    return findings


def _look(folder: str, needs: Needs) -> list[Finding]:
    from parallel_fixedram.experiments.conditions import look

    if not os.path.isdir(folder):
        raise RequestError(f"{folder!r} is not a folder")
    try:
        return look(folder, needs)
    except OSError as error:
        raise HostError.from_os("cannot look at this host", error) from error
