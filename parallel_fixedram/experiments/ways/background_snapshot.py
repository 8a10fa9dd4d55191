"""QEMU's ``background-snapshot``: the guest runs on while RAM, write-protected, goes into a stream as it was once.

It does not go with ``mapped-ram`` (the gate lets it, but no bitmap is written), so the file is a stream. When the guest
stood still the events STOP and RESUME say, by QEMU's clock.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

from parallel_fixedram.core.errors import HostError
from parallel_fixedram.experiments.results import Seconds
from parallel_fixedram.experiments.ways import qemu_modes
from parallel_fixedram.experiments.ways.way import Measured, Run, sync_file
from parallel_fixedram.host.memory import userfaultfd

_NEEDED = userfaultfd.Feature.PAGEFAULT_FLAG_WP | userfaultfd.Feature.WP_HUGETLBFS_SHMEM


class BackgroundSnapshot(qemu_modes.QemuMode):
    """A stream of one instant, of a guest that runs on (Way)."""

    def why_missing(self) -> str | None:
        """There may be no QEMU, or none of it may have a userfaultfd (Way.why_missing)."""
        return qemu_modes.QemuMode.why_missing(self) or _why_no_userfaultfd()

    def run(self, run: Run) -> Measured:
        """Migrate once (Way.run)."""
        guest = run.source.qemu
        assert guest is not None, "the scenario's check comes first"
        qemu_modes.set_capabilities(guest, ("background-snapshot",))
        guest.execute("migrate-set-parameters", {"max-bandwidth": 0})
        moments: dict[str, float] = {}
        with guest.monitor.listen("MIGRATION", "STOP", "RESUME") as events:
            began = time.perf_counter()
            guest.execute("migrate", {"uri": f"file:{run.path}"})
            status = ""
            while status not in qemu_modes.ENDED:
                event = events.wait(qemu_modes.SECONDS)
                moments[event["event"]] = _moment(event)
                status = event.get("data", {}).get("status", status)
            written = time.perf_counter()
        state = qemu_modes.completed(guest, status)
        sync_file(run.path)
        ended = time.perf_counter()
        pause = moments["STOP"], moments["RESUME"]
        seconds = Seconds(total=ended - began, last_write=written - began, pause=pause[1] - pause[0])
        return qemu_modes.measured(run, state, seconds, save_at=(began, ended), pause_at=pause)


def _moment(event: Mapping[str, Any]) -> float:
    """When it happened, by ``time.perf_counter``."""
    stamp = event["timestamp"]
    happened: float = stamp["seconds"] + stamp["microseconds"] / 1e6
    return time.perf_counter() - (time.time() - happened)


def _why_no_userfaultfd() -> str | None:
    try:
        if userfaultfd.missing_features(_NEEDED):
            return "this kernel cannot write-protect shared memory for a userfaultfd, Linux 5.19 and later can"
    except HostError as error:
        return error.message
    if os.geteuid() == 0 or userfaultfd.is_for_everybody():
        return None
    return "QEMU needs a userfaultfd for background-snapshot: root, or vm.unprivileged_userfaultfd = 1"
