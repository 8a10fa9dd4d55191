"""``bench list`` and ``bench run --dry-run``: what could be run here, how long it takes, what is missing."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from parallel_fixedram.cli import common, output
from parallel_fixedram.cli.bench_progress import duration
from parallel_fixedram.cli.folding import print_folded, print_hanging
from parallel_fixedram.core.schemas import stamped
from parallel_fixedram.core.units import format_count

if TYPE_CHECKING:
    from collections.abc import Sequence

    from parallel_fixedram.experiments.planning import Plan
    from parallel_fixedram.experiments.results import RunSet
    from parallel_fixedram.experiments.scenario import Scenario


def register(subparsers: common.Subparsers[Any]) -> None:
    """Add the sub-verb to ``bench``."""
    parser = common.add_verb(
        subparsers,
        "list",
        summary="scenarios that come with the package, what they ask, how long they take here",
        about="List the scenarios that come with the package: what each asks, about how long it takes here, as far as\n"
        "runs done so far tell, and what it needs and whether that is there. What is missing is left out of a run.",
        examples="  parallel-fixedram bench list\n  parallel-fixedram bench list --json",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Carry out ``bench list``; returns the exit code."""
    from parallel_fixedram.experiments.scenario import load_scenario, shipped

    found = [_entry(load_scenario(path)) for path in shipped().values()]
    if args.json:
        output.print_json(stamped("bench_list", {"verb": "bench list", "scenarios": found}))
        return 0
    width = max(len(each["name"]) for each in found)
    for each in found:
        print_hanging(f"{each['name']:<{width}}  ", each["question"])
        print_hanging(" " * (width + 2), f"about {duration(each['rough_seconds'])}; {_needs_text(each['needs'])}")
    return 0


def _entry(scenario: Scenario) -> dict[str, Any]:
    from parallel_fixedram.experiments import pace, planning

    plan = planning.make_plan(scenario.cases)
    return {
        "name": scenario.name,
        "question": scenario.question,
        "path": scenario.path,
        "cases": len(scenario.cases),
        "runs": planning.runs(plan, scenario),
        "rough_seconds": pace.rough_seconds(plan, scenario),
        "needs": [
            {"name": need.name, "there": not need.why_missing, "why_missing": need.why_missing or None}
            for need in planning.needs(scenario.cases)
        ],
    }


def _needs_text(needs: Sequence[dict[str, Any]]) -> str:
    if not needs:
        return "needs nothing"
    there = ", ".join(each["name"] for each in needs if each["there"])
    missing = [f"{each['name']} is missing: {each['why_missing']}" for each in needs if not each["there"]]
    return "; ".join([*([f"needs {there}, there"] if there else []), *missing])


def show_plans(scenarios: Sequence[Scenario], plans: Sequence[Plan], outputs: Sequence[str], *, as_json: bool) -> None:
    """Say what would be run."""
    from parallel_fixedram.experiments import pace, planning

    found: list[dict[str, Any]] = [
        {
            "scenario": scenario.name,
            "question": scenario.question,
            "file": path,
            "cases": [case.id for case in plan.cases],
            "missing": missing(plan),
            "runs": planning.runs(plan, scenario),
            "rough_seconds": pace.rough_seconds(plan, scenario),
        }
        for scenario, plan, path in zip(scenarios, plans, outputs, strict=True)
    ]
    if as_json:
        output.print_json(stamped("bench_plan", {"verb": "bench run", "dry_run": True, "plans": found}))
        return
    for scenario, plan, each in zip(scenarios, plans, found, strict=True):
        print_folded(f"{scenario.name}: {scenario.question}")
        for group in plan.groups:
            print_folded(f"  {group.source}, {group.file_system}:")
            for case in group.cases:
                print_folded(f"    {case.id}")
        print_missing(plan)
        samples = f"{format_count(scenario.repeats, 'sample')} each after {format_count(scenario.warm_up, 'warm-up')}"
        runs = format_count(planning.runs(plan, scenario), "run")
        print_folded(f"  {format_count(len(plan.cases), 'case')}, {samples}, {runs} in all")
        if scenario.until:
            print_folded(f"  more of them until {scenario.until}")
        if scenario.budget:
            print_folded(f"  fewer of them if they do not fit into {scenario.budget}")
        print_folded(f"  about {duration(each['rough_seconds'])}; results go to {each['file']}")


def missing(plan: Plan | RunSet) -> list[dict[str, Any]]:
    """What cannot be run here, for JSON."""
    return [{"way": each.way, "why": each.why, "cases": list(each.cases)} for each in plan.missing]


def print_missing(plan: Plan | RunSet) -> None:
    """What cannot be run here, a line each."""
    for each in plan.missing:
        print_folded(f"  missing: {each.way}: {each.why} ({format_count(len(each.cases), 'case')})")
