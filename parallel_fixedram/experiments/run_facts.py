"""What a run set says about itself before anything is measured: the question, when, where, and by which version."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from importlib import metadata

import numpy as np

from parallel_fixedram.experiments import tools
from parallel_fixedram.experiments.results import RunSet, ScenarioFacts
from parallel_fixedram.experiments.scenario import Scenario
from parallel_fixedram.host.machine_facts import machine_facts

_GIT_SECONDS = 10.0


def empty(scenario: Scenario, folder: str) -> RunSet:
    """A run set with nothing in it; ``folder`` is where its files will go."""
    return _begun(scenario_facts(scenario), folder)


def of_command(command: str, folder: str) -> RunSet:
    """The same for a command whose time is taken."""
    question = f"How long does it take: {command}"
    facts = ScenarioFacts(name="command", question=question, repeats=1, warm_up=0, seed=1, text="")
    return _begun(facts, folder)


def _begun(facts: ScenarioFacts, folder: str) -> RunSet:
    return RunSet(
        scenario=facts,
        started=now(),
        commit=commit(),
        versions={
            "parallel_fixedram": _own_version(),
            "python": platform.python_version(),
            "numpy": np.__version__,
            "qemu": tools.qemu_version(),
            "fio": tools.fio_version(),
            "kernel": platform.release(),
        },
        host=machine_facts(folder),
        order=(),
        missing=(),
        cases=(),
    )


def scenario_facts(scenario: Scenario) -> ScenarioFacts:
    """What was asked."""
    return ScenarioFacts(
        name=scenario.name,
        question=scenario.question,
        repeats=scenario.repeats,
        warm_up=scenario.warm_up,
        seed=scenario.seed,
        text=scenario.text,
        until=scenario.until,
        budget=scenario.budget,
    )


def now() -> str:
    """ISO 8601, with offset."""
    return datetime.datetime.now(datetime.UTC).astimezone().isoformat(timespec="seconds")


def _own_version() -> str | None:
    try:
        return metadata.version("parallel-fixedram")
    except metadata.PackageNotFoundError:
        return None


def commit() -> str | None:
    """The commit of the checkout that this package lies in; None for an installed copy."""
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", package, *arguments],
            check=True,
            capture_output=True,
            text=True,
            timeout=_GIT_SECONDS,
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")  # an installed copy may be inside another checkout
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.SubprocessError):
        return None
