"""How long single things took: writes and shards of the run that was watched, faults of all samples.

::

    write   a write call, or a direct write in flight
    shard   a worker's order, from its beginning to its end
    fault   a write of the guest that had to wait for a snapshot
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from parallel_fixedram.core.latency import Bins, added, bins_of
from parallel_fixedram.experiments.results import CaseResult, RunSet


@dataclass(frozen=True, slots=True, kw_only=True)
class Latencies:
    """Things of one kind."""

    case: str
    what: str
    """``write``, ``shard`` or ``fault``."""
    bins: Bins
    """How many took how long; not empty."""


def latencies(run_set: RunSet) -> list[Latencies]:
    """Of every case what was counted, in the order of the cases."""
    return [
        Latencies(case=case.id, what=what, bins=bins) for case in run_set.cases for what, bins in _of(case) if any(bins)
    ]


def _of(case: CaseResult) -> Iterator[tuple[str, Bins]]:
    if case.instrumented:
        yield "write", case.instrumented.write_bins
        yield "shard", bins_of([end - start for _, start, end, *_ in case.instrumented.timeline])
    snapshots = [snapshot for each in case.samples if (snapshot := (each.report or {}).get("snapshot"))]
    yield "fault", added(each["fault_seconds"].get("bins", ()) for each in snapshots)
