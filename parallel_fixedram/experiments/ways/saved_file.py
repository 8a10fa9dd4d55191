"""The file that ways start from; the first run of a group that needs it makes it."""

from __future__ import annotations

import os

from parallel_fixedram.core.save_options import DirectIO, Writing
from parallel_fixedram.experiments.ways.way import Run, sync_file
from parallel_fixedram.verbs.open import open_ram
from parallel_fixedram.verbs.save import save

_SAVED = ".saved"


def saved_file(run: Run) -> str:
    """Path of a file that holds the run's source, on stable storage.

    Raises:
        FixedRamError: it cannot be saved.
    """
    path = run.path + _SAVED
    if not os.path.exists(path):
        source, how = run.source, Writing(direct_io=DirectIO.OFF)
        save(lambda: source.open_qemu() if source.qemu else open_ram(source.ram), path, writing=how)
        sync_file(path)
    return path
