"""``bench``: performance experiments; raw results as JSON, and what is made of them."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from parallel_fixedram.cli import bench_ab, bench_check, bench_list, bench_results, common, output
from parallel_fixedram.cli.bench_progress import RunsProgress
from parallel_fixedram.cli.folding import print_folded, print_table
from parallel_fixedram.cli.help_text import HelpFormatter
from parallel_fixedram.cli.interrupts import Interrupted
from parallel_fixedram.core.errors import FixedRamError, RequestError
from parallel_fixedram.core.schemas import stamped

if TYPE_CHECKING:
    from parallel_fixedram.experiments.results import CaseResult, RunSet
    from parallel_fixedram.experiments.scenario import Scenario

COMMANDS = ("list", "check", "run", "ab", "compare", "history", "report", "pictures", "export", "simulate")
"""What may come after ``bench``; anything else is a scenario to run."""

RESULTS = "bench-results"
"""The folder where results go unless told otherwise."""

_EXAMPLES = """  parallel-fixedram bench smoke --dry-run
  parallel-fixedram bench run channels gaps --folder /var/tmp
  parallel-fixedram bench ./mine.toml --repeats 3 \\
      --output /tmp/mine.json --json"""

_ABOUT = """Runs are described by scenarios: those that come with the package, named as bench list shows them, or TOML
files of yours, named by path. Pictures and comparisons are made from stored results only.

bench SCENARIO... is the same as bench run SCENARIO...; every command below takes --json and --help."""


def register(subparsers: common.Subparsers[Any]) -> None:
    """Add the verb to the command line."""
    parser = subparsers.add_parser(
        "bench",
        help="performance experiments: raw results as JSON, and reports on them",
        description=_ABOUT,
        epilog=f"examples:\n{_EXAMPLES}",
        formatter_class=HelpFormatter,
    )
    verbs = parser.add_subparsers(dest="bench_verb", metavar="COMMAND", required=True)
    bench_list.register(verbs)
    bench_check.register(verbs)
    _register_run(verbs)
    bench_ab.register(verbs)
    bench_results.register(verbs)
    for name, each in verbs.choices.items():
        common.add_manner_options(each, json=True, progress=name in ("run", "ab"))
    common.add_manner_options(parser)


def with_run(argv: Sequence[str]) -> Sequence[str]:
    """The arguments of a command line with ``run`` after ``bench`` where no command is named."""
    place = argv.index("bench") + 1
    word = next((argument for argument in argv[place:] if not argument.startswith("-")), None)
    if word is None or word in COMMANDS:
        return argv
    return [*argv[:place], "run", *argv[place:]]


def _register_run(verbs: common.Subparsers[Any]) -> None:
    parser = common.add_verb(
        verbs,
        "run",
        summary="run scenarios and store every sample",
        about="Run scenarios. Each sample is stored as soon as it is taken and verified; cases of a guest take turns\n"
        "in shuffled order. What cannot be run here is listed with the reason. Leaves nothing but the results.",
        examples=_EXAMPLES,
    )
    parser.add_argument(
        "scenarios", nargs="+", metavar="SCENARIO", help="a name that bench list shows, or the path of a TOML file"
    )
    common.add_folder_option(parser)
    parser.add_argument("--output", type=common.output_path, metavar="FILE", help="the results of a single scenario")
    parser.add_argument(
        "--results",
        metavar="DIR",
        default=RESULTS,
        help=f"otherwise the results are NAME.json in DIR, which is made if needed (default {RESULTS})",
    )
    parser.add_argument(
        "--repeats", type=common.positive, metavar="N", help="samples per case, instead of the scenario's"
    )
    parser.add_argument(
        "--case",
        action="append",
        default=[],
        metavar="PATTERN",
        help="only cases whose name has this in it, or matches it where it has a *; may be given again",
    )
    parser.add_argument(
        "-L",
        dest="overrides",
        action="append",
        default=[],
        metavar="NAME=VALUE,...",
        help="these values of a parameter instead of the scenario's, such as channels=1,2,8 or qemu.size=1GiB",
    )
    parser.add_argument(
        "--until",
        type=_until,
        metavar="RULE",
        help="more samples until 'interval < 5 %%' is true of every case, for 10 times the samples at most",
    )
    parser.add_argument("--budget", type=_budget, metavar="TIME", help="no round begins that would end after '10 min'")
    parser.add_argument("--dry-run", action="store_true", help="say what would be run, and run nothing")
    parser.add_argument("--resume", action="store_true", help="continue where the results in FILE stop")
    parser.add_argument("--overwrite", action="store_true", help="replace results in FILE")
    parser.set_defaults(run=run)


def _until(text: str) -> str:
    from parallel_fixedram.experiments.stopping import parse_until

    return _told(text, parse_until)


def _budget(text: str) -> str:
    from parallel_fixedram.experiments.stopping import parse_budget

    return _told(text, parse_budget)


def _told(text: str, check: Callable[[str], object]) -> str:
    """The text, if the check takes it."""
    try:
        check(text)
    except RequestError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error.message}") from error
    return text


def _asked(args: argparse.Namespace) -> list[Scenario]:
    """The scenarios, changed as options say."""
    from parallel_fixedram.experiments.scenario import find_scenario
    from parallel_fixedram.experiments.selection import parse_overrides, selected, with_overrides

    overrides = parse_overrides(args.overrides)
    changes = {name: value for name in ("repeats", "until", "budget") if (value := getattr(args, name))}
    return [
        selected(with_overrides(replace(find_scenario(name), **changes), overrides), args.case)
        for name in args.scenarios
    ]


def run(args: argparse.Namespace) -> int:
    """Carry out ``bench run``; returns the exit code."""
    from parallel_fixedram.experiments.planning import make_plan
    from parallel_fixedram.experiments.runner import check_output

    scenarios = _asked(args)
    outputs = [args.output or os.path.join(args.results, f"{each.name}.json") for each in scenarios]
    if len(set(outputs)) < len(outputs):
        raise RequestError("several scenarios, but one file for results: leave out --output, or run one at a time")
    if args.dry_run:
        plans = [make_plan(each.cases) for each in scenarios]
        bench_list.show_plans(scenarios, plans, outputs, as_json=args.json)
        return 0
    for scenario, path in zip(scenarios, outputs, strict=True):
        check_output(scenario, path, resume=args.resume, overwrite=args.overwrite)
    found = []
    for scenario, path in zip(scenarios, outputs, strict=True):
        found.append(_run_one(args, scenario, path))
        if not args.json:
            _print_run_set(found[-1], path)
    if args.json:
        both = zip(found, outputs, strict=True)
        runs = [_summary(each, path) for each, path in both]
        output.print_json(stamped("bench_run", {"verb": "bench run", "runs": runs}))
    return 0


def _run_one(args: argparse.Namespace, scenario: Scenario, path: str) -> RunSet:
    import tempfile

    from parallel_fixedram.experiments.runner import run_scenario
    from parallel_fixedram.experiments.tools import make_folder

    if not args.output:
        make_folder(args.results)
    folder = args.folder or tempfile.gettempdir()
    conditions = bench_check.warned(scenario, folder)
    with RunsProgress(scenario.name) as progress:
        try:
            return run_scenario(
                scenario,
                folder=folder,
                output=path,
                resume=args.resume,
                overwrite=args.overwrite,
                conditions=conditions,
                progress=progress,
            )
        except (Interrupted, FixedRamError) as stop:
            if progress.begun and not stop.hint:
                instead = " instead of --overwrite" if args.overwrite else ""
                stop.hint = f"{path!r} has what was measured: the same command with --resume{instead} goes on there"
            raise


_TIMES = ("total", "last_write", "pause")
_OF_SOME = ("lost", "gap", "first_touch", "second_touch")


def _columns(run_set: RunSet) -> tuple[str, ...]:
    """Times that are told of its cases."""
    samples = [sample for case in run_set.cases for sample in case.samples]
    told = (name for name in _OF_SOME if any(getattr(sample.seconds, name) is not None for sample in samples))
    return (*_TIMES, *told)


def _figures(case: CaseResult, name: str) -> tuple[float, float, float] | None:
    """Median, least and most of one of the times of a case, seconds; None where a way cannot tell."""
    import statistics

    values = [value for sample in case.samples if (value := getattr(sample.seconds, name)) is not None]
    return (statistics.median(values), min(values), max(values)) if values else None


def _print_run_set(run_set: RunSet, path: str) -> None:
    print_folded(f"{run_set.scenario.name}: {run_set.scenario.question}")
    width = max((len(case.id) for case in run_set.cases), default=4)
    columns = _columns(run_set)
    print_table(
        f"  {{:<{width}}}" + "{:>26}" * len(columns),
        ("case", *(f"{name.replace('_', ' ')} ms" for name in columns)),
        [(case.id, *(_cell(_figures(case, name)) for name in columns)) for case in run_set.cases],
    )
    bench_list.print_missing(run_set)
    print_folded(f"  median (least-most); every sample is in {path}")


def _cell(figures: tuple[float, float, float] | None) -> str:
    if figures is None:
        return "-"
    middle, least, most = (1000 * each for each in figures)
    return f"{middle:.1f} ({least:.1f}-{most:.1f})"


def _summary(run_set: RunSet, path: str) -> dict[str, Any]:
    return {
        "scenario": run_set.scenario.name,
        "file": path,
        "finished": run_set.finished,
        "cases": [
            {
                "id": case.id,
                "samples": len(case.samples),
                "seconds": {
                    name: dict(zip(("median", "min", "max"), figures, strict=True)) if figures else None
                    for name in _columns(run_set)
                    for figures in [_figures(case, name)]
                },
            }
            for case in run_set.cases
        ],
        "missing": bench_list.missing(run_set),
    }
