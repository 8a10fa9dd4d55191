"""``bench``: performance experiments; raw results as JSON, and what is made of them."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

from parallel_fixedram.cli import bench_results, common, output
from parallel_fixedram.cli.help_text import HelpFormatter
from parallel_fixedram.core.errors import RequestError
from parallel_fixedram.core.schemas import stamped
from parallel_fixedram.core.units import format_count

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from parallel_fixedram.experiments.planning import Plan
    from parallel_fixedram.experiments.results import CaseResult, RunSet
    from parallel_fixedram.experiments.scenario import Scenario

COMMANDS = ("run", "compare", "report", "pictures", "simulate")
"""What may stand behind ``bench``; anything else is a scenario to run."""

RESULTS = os.path.join("bench", "results")
"""Where results go if this folder is there."""

_EXAMPLES = """  parallel-fixedram bench smoke --dry-run
  parallel-fixedram bench run channels gaps --folder /var/tmp
  parallel-fixedram bench bench/scenarios/qemu.toml --repeats 3 \\
      --output /tmp/qemu.json --json"""

_ABOUT = """Runs are described by scenarios: TOML files, named by path, or by name where they lie in a folder
scenarios or bench/scenarios. Pictures and comparisons are made from stored results only.

bench SCENARIO... is the same as bench run SCENARIO...; every command below takes --json and --help."""


def register(subparsers: common.Subparsers[Any]) -> None:
    """Add the verb to the command line."""
    parser = subparsers.add_parser(
        "bench",
        help="performance experiments: raw results as JSON, and what is made of them",
        description=_ABOUT,
        epilog=f"examples:\n{_EXAMPLES}",
        formatter_class=HelpFormatter,
    )
    verbs = parser.add_subparsers(dest="bench_verb", metavar="COMMAND", required=True)
    _register_run(verbs)
    bench_results.register(verbs)
    for each in verbs.choices.values():
        common.add_manner_options(each, json=True)
    common.add_manner_options(parser)


def with_run(argv: Sequence[str]) -> Sequence[str]:
    """The arguments of a command line with ``run`` behind ``bench`` where no command is named."""
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
        about="Run scenarios. Each sample is stored as soon as it is there and verified; cases of a guest take turns\n"
        "in shuffled order. What cannot be run here is listed with the reason. Leaves nothing but the results.",
        examples=_EXAMPLES,
    )
    parser.add_argument("scenarios", nargs="+", metavar="SCENARIO", help="a TOML file, or the name of one")
    parser.add_argument("--folder", metavar="DIR", help="where files are written (default: where temporary files go)")
    parser.add_argument(
        "--output", metavar="FILE", help=f"the results (default: NAME.json in {RESULTS} if that is there, else here)"
    )
    parser.add_argument("--repeats", type=_positive, metavar="N", help="samples per case, instead of the scenario's")
    parser.add_argument("--dry-run", action="store_true", help="say what would be run, and run nothing")
    parser.add_argument("--resume", action="store_true", help="go on where the results in FILE stop")
    parser.add_argument("--overwrite", action="store_true", help="replace results in FILE")
    parser.set_defaults(run=run)


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number of 1 or more")
    return int(text)


def run(args: argparse.Namespace) -> int:
    """Carry out ``bench run``; returns the exit code."""
    from parallel_fixedram.experiments.planning import make_plan
    from parallel_fixedram.experiments.runner import check_output
    from parallel_fixedram.experiments.scenario import find_scenario

    scenarios = [find_scenario(name) for name in args.scenarios]
    if args.repeats:
        scenarios = [replace(each, repeats=args.repeats) for each in scenarios]
    outputs = [args.output or _default_output(each.name) for each in scenarios]
    if len(set(outputs)) < len(outputs):
        raise RequestError("several scenarios, but one file for their results: leave --output out, or run them alone")
    if args.dry_run:
        plans = [make_plan(each.cases) for each in scenarios]
        _show_plans(scenarios, plans, outputs, as_json=args.json)
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


def _run_one(args: argparse.Namespace, scenario: Scenario, output: str) -> RunSet:
    import tempfile

    from parallel_fixedram.experiments.runner import run_scenario

    with _RunsBar(scenario.name) as bar:
        return run_scenario(
            scenario,
            folder=args.folder or tempfile.gettempdir(),
            output=output,
            resume=args.resume,
            overwrite=args.overwrite,
            progress=bar,
        )


def _default_output(name: str) -> str:
    return os.path.join(RESULTS if os.path.isdir(RESULTS) else "", f"{name}.json")


def _show_plans(scenarios: list[Scenario], plans: list[Plan], outputs: list[str], *, as_json: bool) -> None:
    from parallel_fixedram.experiments.planning import rough_seconds, runs

    found = [
        {
            "scenario": scenario.name,
            "question": scenario.question,
            "file": path,
            "cases": [case.id for case in plan.cases],
            "missing": [{"way": each.way, "why": each.why, "cases": list(each.cases)} for each in plan.missing],
            "runs": runs(plan, scenario),
            "rough_seconds": rough_seconds(plan, scenario),
        }
        for scenario, plan, path in zip(scenarios, plans, outputs, strict=True)
    ]
    if as_json:
        output.print_json(stamped("bench_plan", {"verb": "bench run", "dry_run": True, "plans": found}))
        return
    for scenario, plan, each in zip(scenarios, plans, found, strict=True):
        print(f"{scenario.name}: {scenario.question}")
        for group in plan.groups:
            print(f"  {group.source}, {group.file_system}:")
            for case in group.cases:
                print(f"    {case.id}")
        _print_missing(plan)
        counted = f"{format_count(scenario.repeats, 'sample')} each after {format_count(scenario.warm_up, 'warm-up')}"
        print(
            f"  {format_count(len(plan.cases), 'case')}, {counted}, {format_count(runs(plan, scenario), 'run')} in all"
        )
        print(f"  very roughly {_duration(rough_seconds(plan, scenario))}; results go to {each['file']}")


def _print_missing(plan: Plan | RunSet) -> None:
    for each in plan.missing:
        print(f"  missing: {each.way}: {each.why} ({format_count(len(each.cases), 'case')})")


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


_COLUMNS = ("total", "last_write", "pause")


def _figures(case: CaseResult, name: str) -> tuple[float, float, float] | None:
    """Median, least and most of one of the times of a case, seconds; None where a way cannot tell."""
    import statistics

    values = [value for sample in case.samples if (value := getattr(sample.seconds, name)) is not None]
    return (statistics.median(values), min(values), max(values)) if values else None


def _print_run_set(run_set: RunSet, output: str) -> None:
    print(f"{run_set.scenario.name}: {run_set.scenario.question}")
    width = max((len(case.id) for case in run_set.cases), default=4)
    heads = "".join(f"{name.replace('_', ' ') + ' ms':>26}" for name in _COLUMNS)
    print(f"  {'case':<{width}}{heads}")
    for case in run_set.cases:
        cells = "".join(f"{_cell(_figures(case, name)):>26}" for name in _COLUMNS)
        print(f"  {case.id:<{width}}{cells}")
    _print_missing(run_set)
    print(f"  median (least-most); every sample is in {output}")


def _cell(figures: tuple[float, float, float] | None) -> str:
    if figures is None:
        return "-"
    middle, least, most = (1000 * each for each in figures)
    return f"{middle:.1f} ({least:.1f}-{most:.1f})"


def _summary(run_set: RunSet, output: str) -> dict[str, Any]:
    return {
        "scenario": run_set.scenario.name,
        "file": output,
        "finished": run_set.finished,
        "cases": [
            {
                "id": case.id,
                "samples": len(case.samples),
                "seconds": {
                    name: dict(zip(("median", "min", "max"), figures, strict=True)) if figures else None
                    for name in _COLUMNS
                    for figures in [_figures(case, name)]
                },
            }
            for case in run_set.cases
        ],
        "missing": [{"way": each.way, "why": each.why, "cases": list(each.cases)} for each in run_set.missing],
    }


class _RunsBar:
    """Context manager and progress function: a bar on stderr, on a terminal only; drawn between runs, never in one.

    Args:
        name: what is being run.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._wanted = sys.stderr.isatty() and not output.MANNER.quiet
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._progress is not None:
            with contextlib.suppress(OSError):  # a terminal that went away is no reason to fail
                self._progress.stop()

    def __call__(self, done: int, total: int, what: str) -> None:
        """Show that ``done`` of ``total`` runs are through, and what comes now."""
        if not self._wanted:
            return
        try:
            if self._progress is None or self._task is None:
                self._progress = _bar()
                self._progress.start()
                self._task = self._progress.add_task(self._name, total=total, what=what)
            self._progress.update(self._task, completed=done, total=total, what=what)
            self._progress.refresh()
        except OSError:
            self._wanted = False


def _bar() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[what]}", markup=False),
        console=Console(stderr=True),
        transient=True,
        auto_refresh=False,  # a thread that draws would be part of what is measured
    )
