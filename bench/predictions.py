"""The table of the scenario ``prediction``: what was predicted, what was measured, as Markdown.

python bench/predictions.py bench/results/prediction.json
"""

from __future__ import annotations

import statistics
import sys

from parallel_fixedram.experiments import metrics
from parallel_fixedram.experiments.results import CaseResult, load

LEAST, MOST = 0.7, 1.5
"""What a ratio should lie between."""


def _span(values: list[float], digits: int) -> str:
    middle, least, most = (f"{each:.{digits}f}" for each in (statistics.median(values), min(values), max(values)))
    return f"{middle} ({least}-{most})"


def _row(case: CaseResult) -> str:
    named = [str(case.parameters[name]) for name in ("guest", "file_system", "way", "direct_io")]
    totals = _span(metrics.seconds(case, metrics.Metric.TOTAL), 2)
    choices = [sample.report["choice"] for sample in case.samples if sample.report]
    if not choices:
        return f"| {' | '.join(named)} | | {totals} | | |"
    ratios = [float(each["measured_by_predicted"]) for each in choices]
    predicted = _span([float(each["predicted_stable_seconds"]) for each in choices], 2)
    inside = "yes" if LEAST <= statistics.median(ratios) <= MOST else "no"
    return f"| {' | '.join(named)} | {predicted} | {totals} | {_span(ratios, 2)} | {inside} |"


def main(path: str) -> None:
    """Print the table of one file of results."""
    print("| guest | file system | way | direct | predicted, s | measured, s | ratio | within 0.7 to 1.5 |")
    print("|---|---|---|---|---|---|---|---|")
    for case in sorted(load(path).cases, key=lambda each: each.id):
        if case.samples:
            print(_row(case))


if __name__ == "__main__":
    main(sys.argv[1])
