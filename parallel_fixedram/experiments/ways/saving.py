"""A save of ours as it is measured; runs in the process that ``child.py`` is."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from parallel_fixedram.core.bitmap import PageBitmap
from parallel_fixedram.core.errors import MachineError
from parallel_fixedram.core.latency import Bins, added
from parallel_fixedram.core.observer import Observer
from parallel_fixedram.core.protocols import Machine
from parallel_fixedram.core.reports.save import SaveReport, ShardTrace
from parallel_fixedram.core.save_options import (
    CaptureMode,
    Capturing,
    DirectIO,
    Durability,
    Gate,
    Publishing,
    Writing,
)
from parallel_fixedram.core.schemas import to_json
from parallel_fixedram.core.sequential import stream_bytes
from parallel_fixedram.core.targets import RAM_ONLY_MACHINE
from parallel_fixedram.engine.tuning import calibrate
from parallel_fixedram.experiments.fresh_process import RunAnswer, RunOrder
from parallel_fixedram.machines.ram_files import RamFile, RamFiles
from parallel_fixedram.verbs.open import open_guest, open_libvirt, open_qemu, open_ram
from parallel_fixedram.verbs.save import save

_TOTALS = ("total", "pause")


def measure(order: RunOrder, name_bystander: Callable[[int], None]) -> RunAnswer:
    """Save once.

    Args:
        order: what, and how.
        name_bystander: is told the process of a guest that is started for it.

    Raises:
        FixedRamError: it failed.
    """
    timeline = _Timeline()
    options = _options(order)
    if order.calibrate:
        calibrate.device_model(os.path.dirname(order.path) or ".", 0, fresh=True)
    if order.trace:
        options["observer"] = timeline
    growth: list[tuple[int, int]] | None = None
    began: float | None = None
    if order.rounds is not None:
        report, growth = _save_running(order, options, name_bystander)
    elif order.qmp or order.domain:
        report, began = _save_qemu(order, options)
    elif order.dirty is not None:
        report = _save_dirtied(order, order.dirty, options)
    else:
        with open_ram(order.ram) as machine:
            report = save(machine, order.path, **options)
    return RunAnswer(
        seconds=_seconds(report, order),
        bytes={
            "ram": report.bytes.ram,
            "data": sum(block.data_pages * block.page_size for block in report.blocks),
            "written": report.bytes.written,
            "file": report.bytes.file,
            "allocated": report.bytes.allocated,
        },
        report={name: value for name, value in to_json(report).items() if name != "host"},
        growth=growth,
        sequential=list(enumerate(stream_bytes(report.rounds), 1)) if growth else None,
        timeline=timeline.shards if order.trace else None,
        write_bins=list(timeline.write_bins) if order.trace else None,
        **({} if began is None else _moments(report, began)),
    )


def _options(order: RunOrder) -> dict[str, Any]:
    numbers = {
        name: value for name in ("gap_pages", "shard_pages", "queue_depth") if (value := getattr(order, name)) != "auto"
    }
    return {
        "gate": Gate(channels=order.channels, experimental_multifd=True),
        "writing": Writing(direct_io=DirectIO(order.direct_io), time_writes=order.trace, **numbers),
        "capture": Capturing(mode=CaptureMode(order.capture)),
        "publishing": Publishing(durability=Durability(order.durability)),
    }


def _save_qemu(order: RunOrder, options: Mapping[str, Any]) -> tuple[SaveReport, float]:
    """The report, and when the times in it begin: as soon as the machine is open."""
    began = []

    def opened() -> Machine:
        machine = open_libvirt(order.domain) if order.domain else open_qemu(order.qmp or "", pid=order.pid)
        began.append(time.perf_counter())
        return machine

    return save(opened, order.path, **options), began[0]


def _moments(report: SaveReport, began: float) -> dict[str, tuple[float, float]]:
    """When all of it was, and when the guest stood still for the instant that the file holds, the last one."""
    pause = [each for each in report.phases if each.name == "pause"][-1]
    stopped = began + pause.started
    return {"save_at": (began, began + report.seconds.total), "pause_at": (stopped, stopped + report.seconds.pause)}


def _seconds(report: SaveReport, order: RunOrder) -> dict[str, Any]:
    told: Mapping[str, float] = to_json(report)["seconds"]
    if order.dirty is not None:
        last_write = report.rounds[-1].seconds
    elif report.snapshot is not None:
        last_write = next(each.started + each.seconds for each in report.phases if each.name == "after")
    else:
        last_write = report.seconds.prepare + report.seconds.stop + report.seconds.ram
    return {
        "total": report.seconds.total,
        "last_write": last_write,
        "pause": report.seconds.pause if order.qmp or order.domain or order.rounds else None,
        "phases": {name: value for name, value in told.items() if name not in _TOTALS},
    }


def _save_running(
    order: RunOrder, options: Mapping[str, Any], name_bystander: Callable[[int], None]
) -> tuple[SaveReport, list[tuple[int, int]]]:
    """Save a guest of our own while it goes on dirtying its RAM; notes what the file takes after each round."""
    folder, name = os.path.split(order.path)
    part = os.path.join(folder, f".{name}.part")
    allocated: list[int] = []

    class Growth(Observer):
        """Looks at the file at the end of each round."""

        def phase(self, name: str, total: int = 0) -> None:
            """Count anew (Observer.phase)."""
            self.left = total

        def advanced(self, size: int) -> None:
            """Look when all is done (Observer.advanced)."""
            self.left -= size
            if not self.left:
                with contextlib.suppress(FileNotFoundError):
                    allocated.append(os.stat(part).st_blocks * 512)

    rounds = Capturing(mode=CaptureMode.ROUNDS, max_rounds=order.rounds or 1)
    with open_guest(order.guest or "", running=True) as guest:
        name_bystander(guest.pid)
        report = save(guest, order.path, **{**options, "capture": rounds, "observer": Growth()})
    growth = list(enumerate(allocated[: len(report.rounds) - 1], 1))
    return report, [*growth, (len(report.rounds), report.bytes.allocated)]


def _save_dirtied(order: RunOrder, share: float, options: Mapping[str, Any]) -> SaveReport:
    """Save RAM that stands still in two rounds: all of it, then pages that are said to be dirty."""
    dirty, capture = DirtyOnce(share, order.seed), Capturing(mode=CaptureMode.ROUNDS, max_rounds=2)
    with Dirtied(order.ram, dirty) as ram:
        report = save(ram, order.path, **{**options, "capture": capture})
    if len(report.rounds) != 2 or report.rounds[1].dirty_pages != dirty.marked:
        found = [each.dirty_pages for each in report.rounds]
        raise MachineError(f"rounds of {found} dirty pages, expected two, the second one of {dirty.marked}")
    return report


class _Timeline(Observer):
    """Keeps who wrote which part of the file when, from when to when, offset and bytes; and how long writes took."""

    def __init__(self) -> None:
        self.shards: list[tuple[int, float, float, int, int]] = []
        self.write_bins: Bins = ()

    def shard(self, trace: ShardTrace) -> None:
        """Keep it (Observer.shard)."""
        self.shards.append((trace.worker, trace.started, trace.ended, trace.offset, trace.bytes))
        self.write_bins = added((self.write_bins, trace.write_bins))


class DirtyOnce:
    """A DirtySource by script: nothing at first, a random share of all pages when asked the second time, then nothing.

    Args:
        share: of the pages.
        seed: which ones.
    """

    def __init__(self, share: float, seed: int) -> None:
        self._share = share
        self._seed = seed
        self._asked = 0
        self.marked = 0

    def sync(self, into: Sequence[PageBitmap]) -> int:
        """Mark them (DirtySource.sync)."""
        self._asked += 1
        if self._asked != 2:
            return 0
        random = np.random.default_rng(self._seed)
        for bitmap in into:
            before = bitmap.count()
            count = round(bitmap.pages * self._share)
            bitmap.set_pages(np.sort(random.permutation(bitmap.pages)[:count]).astype(np.int64))
            self.marked += bitmap.count() - before
        return self.marked


class Dirtied(RamFiles):
    """RAM that stands still, with a dirty log.

    Args:
        files: path by block name.
        dirty: the log.
    """

    def __init__(self, files: Mapping[str, str], dirty: DirtyOnce) -> None:
        super().__init__([RamFile(idstr=idstr, path=path) for idstr, path in files.items()], name=RAM_ONLY_MACHINE)
        self._dirty = dirty

    def dirty_source(self) -> DirtyOnce:
        """The script (Machine.dirty_source)."""
        return self._dirty
