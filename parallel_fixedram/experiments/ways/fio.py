"""fio: the same amount of bytes, written with the same block size by as many processes; it looks at nothing.

The roofline of a save: one small buffer is written again and again. Two runs are one sample, for fio tells one time:
with an fsync at the end, and without. FioPages writes single pages at random instead, with many in flight: what a tool
could do that knows which pages hold something, and nothing else.
"""

from __future__ import annotations

import json
import time

from parallel_fixedram.core.errors import HostError
from parallel_fixedram.core.ramblock import TARGET_PAGE_SIZE
from parallel_fixedram.experiments import tools
from parallel_fixedram.experiments.results import Bytes, Seconds
from parallel_fixedram.experiments.ways.way import Measured, Run, clear, file_bytes
from parallel_fixedram.verbs.temporary import temporary_folder


class Fio:
    """Sequential writes of a new file (Way)."""

    def why_missing(self) -> str | None:
        """The program may not be installed (Way.why_missing)."""
        try:
            tools.find("fio")
        except tools.Missing as error:
            return error.message
        return None

    def run(self, run: Run) -> Measured:
        """Write twice, a new file each time (Way.run)."""
        last_write = self._write(run, sync=False)
        clear(run)
        started = time.perf_counter()
        total = self._write(run, sync=True)
        wall = time.perf_counter() - started
        size = _amount(run)
        length, allocated = file_bytes(run.path)
        return Measured(
            seconds=Seconds(total=total, last_write=last_write, wall=wall),
            bytes=Bytes(ram=run.source.size, data=size, written=size, file=length, allocated=allocated),
        )

    def verify(self, run: Run) -> str:
        """Its length (Way.verify)."""
        length, _ = file_bytes(run.path)
        if length != _amount(run):
            raise run.wrong(f"{length} bytes, expected {_amount(run)}")
        return "size"

    def _write(self, run: Run, *, sync: bool) -> float:
        """Seconds that it took by fio's own clock."""
        size = _amount(run)
        with temporary_folder(None) as folder:  # where fio leaves its state
            command = [
                *(tools.find("fio"), "--name=write", f"--filename={run.path}"),
                *self._how(run),
                *(f"--direct={int(run.case.direct_io == 'on')}", f"--end_fsync={int(sync)}"),
                "--fallocate=none",  # or it would allocate the file before its time begins, and nobody else here does
                *("--group_reporting", "--output-format=json", f"--aux-path={folder}"),
            ]
            said = tools.run(command)
        try:
            # notes for people may stand before the object
            rate = json.loads(said[said.index("{") :])["jobs"][0]["write"]["bw_bytes"]
            return size / float(rate)
        except (ValueError, LookupError, TypeError, ZeroDivisionError) as error:
            raise HostError("fio's answer is not understood") from error

    def _how(self, run: Run) -> list[str]:
        """Which part of the file is written by which process, and how."""
        jobs, share = run.case.channels or 1, _amount(run) // (run.case.channels or 1)
        place = [f"--size={share}", f"--offset_increment={share}", f"--numjobs={jobs}"]
        return ["--rw=write", f"--bs={run.case.block_size}", "--ioengine=psync", *place]


class FioPages(Fio):
    """Single pages at random, no page twice (Way)."""

    def verify(self, run: Run) -> str:
        """Its length, which is that of RAM (Way.verify)."""
        length, _ = file_bytes(run.path)
        if length > run.source.size or length < _amount(run):
            raise run.wrong(f"{length} bytes, expected up to {run.source.size}")
        return "size"

    def _how(self, run: Run) -> list[str]:
        depth = [f"--iodepth={run.case.queue_depth}", "--ioengine=libaio"]
        place = [f"--size={run.source.size}", f"--io_size={_amount(run)}"]
        return ["--rw=randwrite", f"--bs={TARGET_PAGE_SIZE}", *depth, *place]


def _amount(run: Run) -> int:
    """As many bytes as are not zero, in whole blocks for every process."""
    unit = (run.case.block_size or TARGET_PAGE_SIZE) * (run.case.channels or 1)
    return max(run.source.data_bytes // unit, 1) * unit
