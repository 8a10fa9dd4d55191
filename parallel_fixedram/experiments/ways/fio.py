"""fio: the same amount of bytes, written with the same block size by as many processes; it looks at nothing.

The roofline of a save: one small buffer is written again and again. Two runs are one sample, for fio tells one time:
with an fsync at the end, and without.
"""

from __future__ import annotations

import json
import tempfile
import time

from parallel_fixedram.core.errors import HostError
from parallel_fixedram.experiments import tools
from parallel_fixedram.experiments.results import Bytes, Seconds
from parallel_fixedram.experiments.ways.way import Measured, Run, clear, file_bytes


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
        case, jobs, size = run.case, run.case.channels or 1, _amount(run)
        with tempfile.TemporaryDirectory(prefix="parallel-fixedram-") as folder:  # where fio leaves its state
            command = [
                *(tools.find("fio"), "--name=write", f"--filename={run.path}", "--rw=write", f"--bs={case.block_size}"),
                *(f"--size={size // jobs}", f"--offset_increment={size // jobs}", f"--numjobs={jobs}"),
                *(f"--direct={int(case.direct_io == 'on')}", "--ioengine=psync", f"--end_fsync={int(sync)}"),
                *("--group_reporting", "--output-format=json", f"--aux-path={folder}"),
            ]
            said = tools.run(command)
        try:
            # notes for people may stand before the object
            rate = json.loads(said[said.index("{") :])["jobs"][0]["write"]["bw_bytes"]
            return size / float(rate)
        except (ValueError, LookupError, TypeError, ZeroDivisionError) as error:
            raise HostError("fio's answer is not understood") from error


def _amount(run: Run) -> int:
    """As many bytes as are not zero, in whole blocks for every process."""
    unit = (run.case.block_size or 1) * (run.case.channels or 1)
    return max(run.source.data_bytes // unit, 1) * unit
