"""``bench ab``: two revisions, or two commands, measured in turn, and by what factor they differ."""

from __future__ import annotations

import argparse
import contextlib
import os
from typing import TYPE_CHECKING, Any

from parallel_fixedram.cli import bench_check, bench_list, common, output
from parallel_fixedram.cli.bench_compare import add_metric_option, add_threshold_option, line
from parallel_fixedram.cli.bench_progress import RunsProgress
from parallel_fixedram.cli.folding import print_folded
from parallel_fixedram.core.errors import RequestError
from parallel_fixedram.core.schemas import stamped

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from parallel_fixedram.experiments.ab import PairedCase, Turn
    from parallel_fixedram.experiments.builds import Build
    from parallel_fixedram.experiments.results import RunSet
    from parallel_fixedram.experiments.scenario import Scenario

_EXAMPLES = """  parallel-fixedram bench ab HEAD~1 HEAD few
  parallel-fixedram bench ab HEAD . ./mine.toml --rounds 20
  parallel-fixedram bench ab HEAD HEAD few
  parallel-fixedram bench ab --command 'cp a b' --command 'dd if=a of=b'"""


def register(subparsers: common.Subparsers[Any]) -> None:
    """Add the sub-verb to ``bench``."""
    parser = common.add_verb(
        subparsers,
        "ab",
        summary="two revisions, or two commands, in turn: by what factor they differ",
        about="Measure A and B in one sitting, one after the other in shuffled order, round after round, and say for\n"
        "each case by what factor B's time is A's, with a 95 % interval of the ratios within rounds. Each revision is\n"
        "unpacked and installed into a venv of its own; '.' is the program that runs now, as it is.\n"
        "The same revision twice shows the noise floor: differences that are seen where there is none.\n\n"
        "Exit code 1 if a case is surely slower by more than the threshold.",
        examples=_EXAMPLES,
    )
    parser.add_argument(
        "what", nargs="*", metavar="A B SCENARIO", help="two revisions, and at least one scenario that both know"
    )
    parser.add_argument(
        "--command",
        dest="commands",
        action="append",
        default=[],
        metavar="COMMAND",
        help="given twice: time these instead, no shell",
    )
    parser.add_argument(
        "--rounds", type=common.positive, default=7, metavar="N", help="samples of each case (default 7)"
    )
    parser.add_argument(
        "--case", action="append", default=[], metavar="PATTERN", help="only such cases: see bench run --help"
    )
    add_metric_option(parser)
    add_threshold_option(parser)
    common.add_folder_option(parser)
    parser.add_argument(
        "--results",
        metavar="DIR",
        default="bench-results",
        help="results are NAME.a.json and NAME.b.json in DIR, which is made if needed (default bench-results)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace results that are there")
    parser.add_argument("--builds", metavar="DIR", help="keep installed revisions in DIR for the next time")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Carry out ``bench ab``; returns the exit code."""
    from parallel_fixedram.experiments import ab
    from parallel_fixedram.experiments.metrics import Metric
    from parallel_fixedram.experiments.tools import make_folder

    first, second, scenarios = _asked(args)
    outputs = {name: _outputs(args, name) for name in list(scenarios) or ["command"]}
    told, regressions = [], 0
    with contextlib.ExitStack() as stack:
        pairs = _turns(args, (first, second), scenarios, stack)
        make_folder(args.results)
        for name, turns in pairs:
            with RunsProgress(name) as progress:
                a, b = ab.run_in_turn(
                    turns, outputs[name], rounds=args.rounds, names=(f"A {first}", f"B {second}"), progress=progress
                )
            found = ab.verdicts(a, b, Metric(args.metric))
            slower = [each.id for each in found if each.ratio.low is not None and each.ratio.low > args.threshold]
            regressions += len(slower)
            same = first == second or (a.commit is not None and a.commit == b.commit and bool(scenarios))
            told.append(_json(name, outputs[name], (a, b), found, slower, aa=same))
            if not args.json:
                _print(told[-1], found)
    if args.json:
        head = {"verb": "bench ab", "a": first, "b": second, "metric": args.metric, "rounds": args.rounds}
        output.print_json(stamped("bench_ab", {**head, "threshold": args.threshold, "scenarios": told}))
    return 1 if regressions else 0


def _asked(args: argparse.Namespace) -> tuple[str, str, dict[str, Scenario]]:
    """Names of both sides, and the scenarios by name; none where commands are timed.

    Raises:
        RequestError: something is missing, or does not go together.
    """
    from parallel_fixedram.experiments.scenario import find_scenario
    from parallel_fixedram.experiments.selection import selected

    if args.commands:
        if len(args.commands) != 2 or args.what or args.case:
            raise RequestError("--command is given twice, and without revisions, scenarios and cases")
        return args.commands[0], args.commands[1], {}
    if len(args.what) < 3:
        raise RequestError("expected two revisions and a scenario, or --command twice")
    first, second, *names = args.what
    found = [selected(find_scenario(name), args.case) for name in names]
    scenarios = {each.name: each for each in found}
    if len(scenarios) < len(found):
        raise RequestError("two of the scenarios have the same name, and so would their results")
    return first, second, scenarios


def _outputs(args: argparse.Namespace, name: str) -> list[str]:
    """Where the results of both sides go.

    Raises:
        RequestError: there are some already.
    """
    paths = [os.path.join(args.results, f"{name}.{side}.json") for side in "ab"]
    for path in paths:
        if os.path.exists(path) and not args.overwrite:
            raise RequestError(f"{path!r} exists", hint="--overwrite replaces it, --results names another folder")
    return paths


def _turns(
    args: argparse.Namespace, sides: Sequence[str], scenarios: dict[str, Scenario], stack: contextlib.ExitStack
) -> Iterator[tuple[str, list[Turn]]]:
    """What takes turns, for each scenario: made when it is its time, gone with the stack."""
    import tempfile

    from parallel_fixedram.experiments.ab import CommandTurn, RevisionTurn
    from parallel_fixedram.verbs.temporary import temporary_folder

    folder = args.folder or tempfile.gettempdir()
    if not os.path.isdir(folder):
        raise RequestError(f"{folder!r} is not a folder")
    if not scenarios:
        yield "command", [CommandTurn(each, folder) for each in sides]
        return
    scratch = stack.enter_context(temporary_folder(None))
    builds = _builds(sides, args.builds or scratch)
    for number, (name, scenario) in enumerate(scenarios.items()):
        bench_check.warned(scenario, folder)
        places = [os.path.join(scratch, f"{number}{side}") for side in "ab"]
        yield name, [RevisionTurn(build, scenario, at, folder) for build, at in zip(builds, places, strict=True)]


def _builds(names: Sequence[str], folder: str) -> list[Build]:
    from parallel_fixedram.experiments.builds import HERE, build, find_revision

    revisions = [find_revision(name) for name in names]
    for each in revisions:
        if each.name != HERE:
            output.warn(f"installing {each.name}, commit {each.commit}")
    return [build(each, folder) for each in revisions]


def _json(
    name: str, paths: list[str], sets: tuple[RunSet, RunSet], found: list[PairedCase], slower: list[str], *, aa: bool
) -> dict[str, Any]:
    from parallel_fixedram.experiments.ab import noise_floor

    return {
        "scenario": name,
        "files": paths,
        "commits": [each.commit for each in sets],
        "same": aa,
        "noise_floor": noise_floor(found) if aa else None,
        "cases": [
            {
                "id": each.id,
                "median_a": each.median_a,
                "median_b": each.median_b,
                "pairs": each.ratio.samples[0],
                "ratio": each.ratio.value,
                "interval": None if each.ratio.low is None else [each.ratio.low, each.ratio.high],
                "verdict": str(each.ratio.verdict),
                "why": each.ratio.why,
                "regression": each.id in slower,
            }
            for each in found
        ],
        "missing": bench_list.missing(sets[0]),
    }


def _print(told: dict[str, Any], found: list[PairedCase]) -> None:
    print_folded(f"{told['scenario']}: B by A, {' and '.join(told['files'])}")
    for each, case in zip(found, told["cases"], strict=True):
        medians = f"{each.median_a * 1000:.4g} and {each.median_b * 1000:.4g}"
        print_folded(f"  {line(each.id, medians, each.ratio, regression=case['regression'])}")
    for missing in told["missing"]:
        print_folded(f"  missing: {missing['way']}: {missing['why']}")
    if told["same"]:
        floor = told["noise_floor"]
        reach = "is not known from so few rounds" if floor is None else f"is a factor of {floor:.3f}"
        print_folded(f"  A and B are the same: the noise floor {reach}")
