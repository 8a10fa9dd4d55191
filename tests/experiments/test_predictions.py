"""The table of predictions and measurements: bench/predictions.py on results whose figures are known."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from parallel_fixedram.experiments.results import Bytes, CaseResult, Sample, Seconds

SCRIPT = Path(__file__).parents[2] / "bench" / "predictions.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("predictions", SCRIPT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def case_of(way: str, predicted: float | None, *totals: float) -> CaseResult:
    parameters = {"way": way, "guest": "dense,size=1GiB", "file_system": "xfs", "direct_io": "on"}
    samples = tuple(
        Sample(
            number=number,
            seconds=Seconds(total=total),
            bytes=Bytes(ram=1),
            verified="digests",
            report=predicted
            and {"choice": {"predicted_stable_seconds": predicted, "measured_by_predicted": total / predicted}},
        )
        for number, total in enumerate(totals)
    )
    return CaseResult(id=way, parameters=parameters, samples=samples)


@pytest.mark.parametrize(
    ("totals", "ratio", "inside"),
    [
        ((1.4, 1.6, 3.0), "0.80 (0.70-1.50)", "yes"),
        ((2.8, 3.2, 3.4), "1.60 (1.40-1.70)", "no"),
        ((1.0, 1.2, 2.0), "0.60 (0.50-1.00)", "no"),
    ],
)
def test_the_middle_ratio_is_judged_and_all_of_them_are_shown(
    script: ModuleType, totals: tuple[float, ...], ratio: str, inside: str
) -> None:
    row = script._row(case_of("ours", 2.0, *totals))
    assert row.startswith("| dense,size=1GiB | xfs | ours | on | 2.00 (2.00-2.00) | ")
    assert row.endswith(f" | {ratio} | {inside} |")


def test_who_predicts_nothing_is_only_measured(script: ModuleType) -> None:
    assert script._row(case_of("fio", None, 1.0, 2.0, 4.0)) == (
        "| dense,size=1GiB | xfs | fio | on | | 2.00 (1.00-4.00) | | |"
    )
