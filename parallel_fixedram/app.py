"""What the package does, put together: the gate, a machine, the engine.

The one place where guests and engine meet. The command line calls these functions, and so may any program: each takes
plain values, returns a report from ``core.report``, and raises only the errors of ``core.errors``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from parallel_fixedram.core.capabilities import (
    capabilities_for_save,
)
from parallel_fixedram.core.choice import CANDIDATES, DirectIO
from parallel_fixedram.core.errors import RequestError
from parallel_fixedram.core.profiles import TABLES, Profile
from parallel_fixedram.core.protocols import Machine
from parallel_fixedram.core.reports.plan import PlanReport
from parallel_fixedram.core.reports.save import SaveReport
from parallel_fixedram.core.uri import parse_uri
from parallel_fixedram.core.words import choice
from parallel_fixedram.engine.tuning.save_options import Cache, Durability, SaveOptions
from parallel_fixedram.engine.workers.progress import Progress, Trace
from parallel_fixedram.host.files.direct_channel import DEPTH
from parallel_fixedram.host.files.publish import check_target
from parallel_fixedram.machines.ram_files import RamFiles
from parallel_fixedram.verbs import plan_save as _plan_save
from parallel_fixedram.verbs import save as _save

if TYPE_CHECKING:
    pass


def save(
    machine: Machine | Callable[[], Machine],
    uri: str,
    *,
    channels: int | None = 1,
    experimental_multifd: bool = False,
    capabilities: Mapping[str, bool] | None = None,
    profile: Profile | str = Profile.FIXED_RAM,
    direct_io: DirectIO | str = DirectIO.AUTO,
    gap_pages: int | None = None,
    shard_pages: int | None = None,
    queue_depth: int | None = None,
    calibrate: bool = False,
    live: bool = False,
    max_rounds: int = 16,
    overwrite: bool = False,
    durability: Durability | str = Durability.FULL,
    cache: Cache | str = Cache.KEEP,
    progress: Progress | None = None,
    trace: Trace | None = None,
) -> SaveReport:
    """Save a machine's RAM into a mapped-ram file with parallel workers.

    Args:
        machine: what to save; or what opens it, called only after the gate agreed, and then closed here.
        uri: a path, or ``file:PATH[,offset=SIZE]``.
        channels: number of worker processes; more than one is multifd. None to choose as many as pay, which is one
            where the gate forbids more.
        experimental_multifd: lift the rule against fixed-ram with multifd.
        capabilities: further capabilities for the gate.
        profile: whose rules the gate follows.
        direct_io: ``on``, ``off`` or ``auto``: whether pages bypass the page cache.
        gap_pages: gaps of up to so many pages between two runs are written along; None to choose it.
        shard_pages: about how many pages a shard has; None to choose it.
        queue_depth: direct writes that each worker has in flight, 0 for one by one; None for as many as pay.
        calibrate: measure what writes cost in that folder, even if it is known from earlier.
        live: let the machine run while what it dirties is saved in rounds; only the last one has it stopped.
        max_rounds: most rounds of a live save, the stopped one included.
        overwrite: replace an existing file, once the new one is complete.
        durability: ``full`` or ``none``: whether the file has to survive a power cut when this returns.
        cache: ``keep`` or ``drop``: whether the file may stay in the page cache afterwards.
        progress: ``progress(phase, done, total)`` in bytes.
        trace: told who wrote which part of the file when.

    Returns:
        What was done; bytes and seconds are in the report's fields.

    Raises:
        CapabilityError: the gate refuses, or the target cannot seek. Nothing was touched.
        RequestError: impossible as asked, or the file exists. Nothing was touched.
        MachineError: the machine did not stop or went away.
        HostError: I/O or memory, ENOSPC among them; a WorkerError if no worker survived. No file is left.
        DurabilityError: the file is published, but may not survive a power cut.
    """
    target = parse_uri(uri)
    gate = _SaveGate(dict(capabilities or {}), choice(Profile, profile, "profile"), experimental_multifd)
    options = _save_options(
        gate,
        channels=channels,
        direct_io=choice(DirectIO, direct_io, "direct_io"),
        gap_pages=gap_pages,
        shard_pages=shard_pages,
        queue_depth=queue_depth,
        calibrate=calibrate,
        overwrite=overwrite,
        durability=choice(Durability, durability, "durability"),
        cache=choice(Cache, cache, "cache"),
        rounds=(max_rounds, live),
        offset=target.offset,
    )
    check_target(target.path, overwrite=overwrite)
    notes = _link_notes(target.path)
    with ExitStack() as stack:
        if callable(machine):
            machine = machine()
            stack.callback(machine.close)
        if isinstance(machine, RamFiles) and machine.is_memory(target.path):
            raise RequestError(f"{target.path!r} is the RAM that is to be saved")
        report = _save.save(machine, target.path, options, dirty=machine.dirty_source(), progress=progress, trace=trace)
        return replace(report, capabilities=gate.decided(report.channels), notes=(*report.notes, *notes))


def _link_notes(path: str) -> tuple[str, ...]:
    """What has to be said of a target that is a symbolic link, which is replaced itself."""
    try:
        leads = os.readlink(path)
    except OSError:
        return ()
    return (f"{path!r} was a symbolic link to {leads!r}; it is the new file now, and what it led to is as it was",)


def plan(
    machine: Machine | Callable[[], Machine],
    uri: str,
    *,
    channels: int | None = 1,
    experimental_multifd: bool = False,
    capabilities: Mapping[str, bool] | None = None,
    profile: Profile | str = Profile.FIXED_RAM,
    direct_io: DirectIO | str = DirectIO.AUTO,
    gap_pages: int | None = None,
    shard_pages: int | None = None,
    calibrate: bool = False,
) -> PlanReport:
    """Say how ``save`` would write, and how long that would take, without stopping the machine or making a file.

    Takes and raises what ``save`` does; a file of that name may exist.
    """
    target = parse_uri(uri)
    gate = _SaveGate(dict(capabilities or {}), choice(Profile, profile, "profile"), experimental_multifd)
    options = _save_options(
        gate,
        channels=channels,
        direct_io=choice(DirectIO, direct_io, "direct_io"),
        gap_pages=gap_pages,
        shard_pages=shard_pages,
        calibrate=calibrate,
        offset=target.offset,
    )
    check_target(target.path, overwrite=True)
    with ExitStack() as stack:
        if callable(machine):
            machine = machine()
            stack.callback(machine.close)
        return _plan_save.plan_save(machine, target.path, options)


@dataclass(frozen=True, slots=True)
class _SaveGate:
    """The capability gate of one save."""

    extra: Mapping[str, bool]
    profile: Profile
    experimental: bool

    def decided(self, channels: int) -> dict[str, bool]:
        """The capabilities of a save with so many channels.

        Raises:
            CapabilityError: they cannot be together.
        """
        on = capabilities_for_save(
            channels=channels, extra=self.extra, profile=self.profile, experimental=self.experimental
        )
        asked = {TABLES[self.profile].canonical(name) or name: False for name in self.extra}
        return {**asked, **dict.fromkeys(on, True)}

    def most_channels(self) -> tuple[int, str]:
        """Most channels that may be chosen, and what forbids more."""
        self.decided(1)
        try:
            self.decided(2)
        except RequestError as error:
            return 1, f"more is multifd: {error.message}"
        return max(CANDIDATES), ""


def _save_options(
    gate: _SaveGate,
    *,
    channels: int | None,
    gap_pages: int | None,
    shard_pages: int | None,
    queue_depth: int | None = None,
    rounds: tuple[int, bool] = (1, False),
    **others: Any,
) -> SaveOptions:
    """Options of a save that the gate lets pass.

    Raises:
        CapabilityError: it does not.
        RequestError: a number out of its range.
    """
    most, why = gate.most_channels() if channels is None else (channels, "")
    capabilities = gate.decided(most)
    max_rounds, live = rounds
    for number, least, what in (
        (max_rounds, 1, "rounds"),
        (gap_pages, 0, "gap pages"),
        (shard_pages, 1, "shard pages"),
        (queue_depth, 0, "writes in flight"),
    ):
        if number is not None and number < least:
            raise RequestError(f"{number} {what}, at least {least} is needed")
    return SaveOptions(
        channels=channels,
        most_channels=most,
        why_most=why,
        gap_pages=gap_pages,
        shard_pages=shard_pages,
        queue_depth=DEPTH if queue_depth is None else queue_depth,
        max_rounds=max_rounds if live else 1,
        capabilities=capabilities,
        **others,
    )
