"""What stopping a guest, asking for its device state and letting it go on takes, without any of its RAM."""

from __future__ import annotations

import time

from parallel_fixedram.experiments import tools
from parallel_fixedram.experiments.results import Bytes, Seconds
from parallel_fixedram.experiments.ways.way import Measured, Run


class PauseFloor:
    """No save of a QEMU guest can stop it for less (Way)."""

    def why_missing(self) -> str | None:
        """There may be no QEMU (Way.why_missing)."""
        return tools.why_no_qemu()

    def run(self, run: Run) -> Measured:
        """Stop it once (Way.run)."""
        with run.source.open_qemu() as machine:
            machine.get_ready()
            started = time.perf_counter()
            try:
                machine.pause()
                machine.device_state()
            finally:
                machine.resume()
            ended = time.perf_counter()
        seconds, at = ended - started, (started, ended)
        size = Bytes(ram=run.source.size)
        return Measured(seconds=Seconds(total=seconds, pause=seconds), bytes=size, save_at=at, pause_at=at)

    def verify(self, run: Run) -> str:
        """There is no file (Way.verify)."""
        return "no"
