"""Parameters of the simulation, from a save with one channel and from runs of fio and a scan on the same host."""

from __future__ import annotations

from collections.abc import Iterator

from parallel_fixedram.core.errors import RequestError
from parallel_fixedram.experiments.metrics import Metric, seconds
from parallel_fixedram.experiments.results import CaseResult, RunSet
from parallel_fixedram.experiments.shard_calls import PlannedWrites
from parallel_fixedram.experiments.simulate import Device, Host
from parallel_fixedram.experiments.statistics import median


class Fit:
    """Finds out the parameters of device and host.

    Args:
        run_set: with the roofline.
        one: the case of ours with one channel.
        metric: the time that is simulated.
        direct: whether its pages bypassed the page cache.
        notes: a sentence about everything that was assumed or does not fit is added here.
    """

    def __init__(self, run_set: RunSet, one: CaseResult, metric: Metric, direct: bool, notes: list[str]) -> None:
        self._run_set, self._one, self._metric, self._direct, self._notes = run_set, one, metric, direct, notes

    def parameters(self, workload: PlannedWrites) -> tuple[Device, Host, float]:
        """Device, host, and the seconds before the first page.

        Args:
            workload: the writes of the case with one channel.

        Raises:
            RequestError: the run set does not tell enough.
        """
        cpus = self._run_set.host.get("cpus")
        if not isinstance(cpus, int) or cpus < 1:
            raise RequestError("the host facts do not say how many processors there were")
        fixed, size = self._fixed(), workload.bytes
        peers = list(self._peers())
        rates = [self._per_byte(case) for case in peers]
        single = [rate for case, rate in zip(peers, rates, strict=True) if case.parameters.get("channels") == 1]
        kind = "direct" if self._direct else "buffered"
        if not single:
            raise RequestError(f"no {kind} fio with one process on this file system, which tells what a call takes")
        block = int(peers[rates.index(min(single))].parameters.get("block_size", 1 << 20))
        if self._direct:
            per_byte = min(rates)
            call = (min(single) - per_byte) * block
            device, copy = Device(call_seconds=call, byte_seconds=per_byte), 0.0
            rest = self._measured() - fixed - workload.calls * call - size * per_byte
        else:
            device, copy = Device(), min(single)
            rest = self._measured() - fixed - size * copy
        scan = self._scan(rest / size)
        host = Host(processors=cpus, scan_byte_seconds=scan, copy_byte_seconds=copy, lock=not self._direct)
        return device, host, fixed

    def _measured(self) -> float:
        return median(seconds(self._one, self._metric))

    def _fixed(self) -> float:
        """What a save did before its first page; a second round alone has none of it."""
        if self._one.parameters.get("dirty"):
            return 0.0
        told = [(sample.seconds.phases or {}).get("prepare") for sample in self._one.samples]
        known = [each for each in told if each is not None]
        if known:
            return median(known)
        self._notes.append("how long the preparations took is not known, and taken as nothing")
        return 0.0

    def _peers(self) -> Iterator[CaseResult]:
        """The fio cases that wrote in the same way to the same place."""
        for case in self._run_set.cases:
            parameters = case.parameters
            same = parameters.get("file_system") == self._one.parameters.get("file_system")
            same = same and (parameters.get("direct_io") == "on") == self._direct
            if parameters.get("way") == "fio" and same and self._bytes(case) and min(self._times(case), default=0) > 0:
                yield case

    def _times(self, case: CaseResult) -> list[float]:
        """To the last write where told; a direct fio has no more to do after it than to sync the length."""
        return seconds(case, self._metric) or (seconds(case, Metric.TOTAL) if self._direct else [])

    @staticmethod
    def _bytes(case: CaseResult) -> int:
        first = case.samples[0].bytes if case.samples else None
        return 0 if first is None else first.written or first.data or first.ram

    def _per_byte(self, case: CaseResult) -> float:
        return median(self._times(case)) / self._bytes(case)

    def _scan(self, fitted: float) -> float:
        """What a byte takes a worker: what is left of one channel's time, but not less than the scan alone."""
        least = 0.0
        for case in self._run_set.cases:
            if case.parameters.get("way") == "scan" and (times := seconds(case, Metric.TOTAL)):
                least = median(times) / case.samples[0].bytes.ram
        if fitted < least:
            self._notes.append(
                "one channel was faster than device and scan allow; the simulation takes them as the least"
            )
        return max(fitted, least)
