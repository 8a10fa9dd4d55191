"""A save of ours as it is measured; runs in the process that ``child.py`` is."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from parallel_fixedram import app
from parallel_fixedram.core.bitmap import PageBitmap
from parallel_fixedram.core.errors import MachineError
from parallel_fixedram.core.protocols import GuestBlock
from parallel_fixedram.core.reports.save import SaveReport, ShardTrace
from parallel_fixedram.core.schemas import to_json
from parallel_fixedram.core.sequential import stream_bytes
from parallel_fixedram.engine.tuning import calibrate
from parallel_fixedram.experiments.process import Answer, Order
from parallel_fixedram.machines.ram_files import RamFiles
from parallel_fixedram.verbs.open import open_guest, open_qemu, open_ram

_TOTALS = ("total", "pause")


def measure(order: Order, name_bystander: Callable[[int], None]) -> Answer:
    """Save once.

    Args:
        order: what, and how.
        name_bystander: is told the process of a guest that is started for it.

    Raises:
        FixedRamError: it failed.
    """
    trace: list[tuple[int, float, float, int, int]] = []

    def traced(shard: ShardTrace) -> None:
        trace.append((shard.worker, shard.started, shard.ended, shard.offset, shard.bytes))

    options: dict[str, Any] = {
        "channels": order.channels,
        "experimental_multifd": True,
        "direct_io": order.direct_io,
        "durability": order.durability,
    }
    for name in ("gap_pages", "shard_pages", "queue_depth"):
        if (value := getattr(order, name)) != "auto":
            options[name] = value
    if order.calibrate:
        calibrate.device_model(os.path.dirname(order.path) or ".", 0, fresh=True)
    if order.trace:
        options["trace"] = traced
    growth: list[tuple[int, int]] | None = None
    if order.rounds is not None:
        report, growth = _save_running(order, options, name_bystander)
    elif order.qmp is not None:
        report = app.save(lambda: open_qemu(order.qmp or "", pid=order.pid), order.path, **options)
    elif order.dirty is not None:
        report = _save_dirtied(order, order.dirty, options)
    else:
        with open_ram(order.ram) as machine:
            report = app.save(machine, order.path, **options)
    return Answer(
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
        timeline=trace if order.trace else None,
    )


def _seconds(report: SaveReport, order: Order) -> dict[str, Any]:
    told: Mapping[str, float] = to_json(report)["seconds"]
    if order.dirty is not None:
        last_write = report.rounds[-1].seconds
    else:
        last_write = report.seconds.prepare + report.seconds.stop + report.seconds.ram
    return {
        "total": report.seconds.total,
        "last_write": last_write,
        "pause": report.seconds.pause if order.qmp or order.rounds else None,
        "phases": {name: value for name, value in told.items() if name not in _TOTALS},
    }


def _save_running(
    order: Order, options: Mapping[str, Any], name_bystander: Callable[[int], None]
) -> tuple[SaveReport, list[tuple[int, int]]]:
    """Save a guest of our own while it goes on dirtying its RAM; notes what the file takes after each round."""
    folder, name = os.path.split(order.path)
    part = os.path.join(folder, f".{name}.part")
    allocated: list[int] = []

    def note(phase: str, done: int, total: int) -> None:
        if phase == "write" and done == total:
            with contextlib.suppress(FileNotFoundError):
                allocated.append(os.stat(part).st_blocks * 512)

    with open_guest(order.guest or "", running=True) as guest:
        name_bystander(guest.pid)
        report = app.save(guest, order.path, live=True, max_rounds=order.rounds or 1, progress=note, **options)
    growth = list(enumerate(allocated[: len(report.rounds) - 1], 1))
    return report, [*growth, (len(report.rounds), report.bytes.allocated)]


def _save_dirtied(order: Order, share: float, options: Mapping[str, Any]) -> SaveReport:
    """Save RAM that stands still in two rounds: all of it, then pages that are said to be dirty."""
    with open_ram(order.ram) as ram:
        dirty = DirtyOnce(share, order.seed)
        report = app.save(Dirtied(ram, dirty), order.path, live=True, max_rounds=2, **options)
    if len(report.rounds) != 2 or report.rounds[1].dirty_pages != dirty.marked:
        found = [each.dirty_pages for each in report.rounds]
        raise MachineError(f"rounds of {found} dirty pages, expected two, the second one of {dirty.marked}")
    return report


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


class Dirtied:
    """RAM that stands still as a Machine with a dirty log.

    Args:
        ram: the RAM.
        dirty: the log.
    """

    def __init__(self, ram: RamFiles, dirty: DirtyOnce) -> None:
        self._ram = ram
        self._dirty = dirty
        self.name = ram.name
        self.target = ram.target

    def guest_blocks(self) -> Sequence[GuestBlock]:
        """Those of the RAM (Machine.guest_blocks)."""
        return self._ram.guest_blocks()

    def prepare(self) -> bool:
        """Nothing runs (Machine.prepare)."""
        return False

    def sync_disks(self) -> Sequence[str]:
        """There are no disks (Machine.sync_disks)."""
        return ()

    def pause(self) -> bool:
        """Nothing runs (Machine.pause)."""
        return False

    def resume(self) -> None:
        """Nothing runs (Machine.resume)."""

    def look_again(self) -> bool:
        """The RAM stays what it is (Machine.look_again)."""
        return False

    def device_state(self) -> bytes:
        """There are no devices (Machine.device_state)."""
        return b""

    def dirty_source(self) -> DirtyOnce:
        """The script (Machine.dirty_source)."""
        return self._dirty

    def close(self) -> None:
        """The RAM is closed by whoever opened it (Machine.close)."""
