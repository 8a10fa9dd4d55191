"""``verify`` as people run it: every page of a file against its digest."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from parallel_fixedram.experiments import tools
from parallel_fixedram.experiments.results import Bytes, Seconds
from parallel_fixedram.experiments.ways.saved_file import saved_file
from parallel_fixedram.experiments.ways.way import Measured, Run, drop_page_cache, file_bytes


class Verify:
    """A file that is right, checked (Way)."""

    def why_missing(self) -> str | None:
        """Nothing is (Way.why_missing)."""
        return None

    def run(self, run: Run) -> Measured:
        """Check it once (Way.run)."""
        file = saved_file(run)
        if run.case.cache == "drop":
            drop_page_cache()
        started = time.perf_counter()
        said = tools.run([sys.executable, "-m", "parallel_fixedram", "verify", file, "--json"])
        wall = time.perf_counter() - started
        report: dict[str, Any] = json.loads(said)
        if not report["digests"]:
            raise run.wrong("the file has no digests")
        length, allocated = file_bytes(file)
        return Measured(
            seconds=Seconds(total=report["seconds"], wall=wall),
            bytes=Bytes(ram=run.source.size, data=run.source.data_bytes, file=length, allocated=allocated),
        )

    def verify(self, run: Run) -> str:
        """That is what was measured; a difference would have been an error (Way.verify)."""
        return "digests"
