"""Findings as lines: a verdict, what was looked at, what was found, and below it how to get what is missing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from parallel_fixedram.cli.folding import print_hanging

if TYPE_CHECKING:
    from parallel_fixedram.core.reports.doctor import Finding

_VERDICT = len("refused ")


def print_findings(findings: Sequence[Finding]) -> None:
    """Print these, one below the other."""
    width = max(len(each.what) for each in findings) + 1
    for each in findings:
        print_hanging(f"  {each.verdict:<{_VERDICT}}{each.what:<{width}} ", each.detail)
        if each.how:
            print_hanging(" " * (2 + _VERDICT + width + 1), f"-> {each.how}")
