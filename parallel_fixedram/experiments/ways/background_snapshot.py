"""QEMU's ``background-snapshot``: the guest runs on while RAM, write-protected, goes into a stream as it was once.

It does not go with ``mapped-ram`` (the gate lets it, but no bitmap is written), so the file is a stream. When the guest
stood still the events STOP and RESUME say, by QEMU's clock.
"""

from __future__ import annotations

import os

from parallel_fixedram.core.errors import HostError
from parallel_fixedram.experiments.ways import qemu_modes
from parallel_fixedram.experiments.ways.way import Measured, Run
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
        return qemu_modes.run_through(run, guest, ("background-snapshot",), {"max-bandwidth": 0}, goes_on=True)


def _why_no_userfaultfd() -> str | None:
    try:
        if userfaultfd.missing_features(_NEEDED):
            return "this kernel cannot write-protect shared memory for a userfaultfd, Linux 5.19 and later can"
    except HostError as error:
        return error.message
    if os.geteuid() == 0 or userfaultfd.is_for_everybody():
        return None
    return "QEMU needs a userfaultfd for background-snapshot: root, or vm.unprivileged_userfaultfd = 1"
