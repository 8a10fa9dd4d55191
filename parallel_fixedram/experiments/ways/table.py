"""Every way by its name."""

from __future__ import annotations

from collections.abc import Mapping

from parallel_fixedram.experiments.ways.background_snapshot import BackgroundSnapshot
from parallel_fixedram.experiments.ways.boots import Clone, QemuLoad, Restore
from parallel_fixedram.experiments.ways.fio import Fio, FioPages
from parallel_fixedram.experiments.ways.fresh import Naive, Ours, Part, Sequential
from parallel_fixedram.experiments.ways.pause_floor import PauseFloor
from parallel_fixedram.experiments.ways.qemu_modes import MODES
from parallel_fixedram.experiments.ways.verifying import Verify
from parallel_fixedram.experiments.ways.virsh import VirshRestore, VirshSave
from parallel_fixedram.experiments.ways.way import Way

OURS = Ours()

TABLE: Mapping[str, Way] = {
    "ours": OURS,
    "ours-threads": Naive(),
    "page-by-page": Naive(),
    "sequential": Sequential(),
    "fio": Fio(),
    "fio-pages": FioPages(),
    **MODES,
    "restore": Restore(),
    "clone": Clone(),
    "qemu-load": QemuLoad(),
    "qemu-background-snapshot": BackgroundSnapshot(),
    "verify": Verify(),
    "virsh-save": VirshSave(),
    "virsh-restore": VirshRestore(),
    "pause-floor": PauseFloor(),
    "scan": Part(),
    "copy": Part(),
}
"""The same names as cases.WAYS."""
