"""From command lines to guests that live on: either all are started, load the file and are handed over, or none."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

from parallel_fixedram.boot.fleet import Fleet
from parallel_fixedram.boot.plan import Boot
from parallel_fixedram.boot.recorded_disks import refuse_written
from parallel_fixedram.core.observer import Observer
from parallel_fixedram.core.reports.boot import BootReport, BootSeconds, GuestReport
from parallel_fixedram.host.processes import signals
from parallel_fixedram.image.image import Image

if TYPE_CHECKING:
    from parallel_fixedram.machines.qemu.monitor import Monitor


@dataclass(frozen=True, slots=True, kw_only=True)
class HandedOver:
    """Guests that live on, and how they were started."""

    boot: Boot
    guests: tuple[GuestReport, ...]
    notes: tuple[str, ...]
    """What the user has to know, a sentence each."""
    start_seconds: float
    """From the first start until all had answered."""
    meanwhile_seconds: float
    """How long the work done while they started took."""
    load_seconds: float
    """From then until all had loaded."""

    def report(
        self,
        verb: str,
        image: Image,
        how: str,
        *,
        verified: bool,
        started: float,
        channels: int = 1,
        fill: bool = False,
    ) -> BootReport:
        """A verb's report about them.

        Args:
            verb: its name.
            image: the file.
            how: how RAM got into the guests.
            verified: whether every page was checked against its digest.
            started: ``time.perf_counter()`` when the verb began.
            channels: workers, or QEMU's multifd channels.
            fill: whether memory was filled while the guests started.
        """
        return BootReport(
            verb=verb,
            file=image.path,
            how=how,
            channels=channels,
            direct_io=self.boot.source.direct_io,
            guests=self.guests,
            changes=tuple(self.boot.changes),
            verified=verified,
            seconds=BootSeconds(
                total=time.perf_counter() - started,
                fill=self.meanwhile_seconds if fill else 0.0,
                start=self.start_seconds,
                load=self.load_seconds,
            ),
            notes=self.notes,
        )


def hand_over(
    image: Image,
    boot: Boot,
    *,
    folder: str | None,
    observer: Observer,
    meanwhile: Callable[[], object] = lambda: None,
    before_they_run: Callable[[], object] = lambda: None,
    when_they_run: Callable[[Sequence[GuestReport], Sequence[Monitor]], Sequence[str]] = lambda _guests, _monitors: (),
    together_with: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> HandedOver:
    """Start QEMUs from a file, and let them go.

    Args:
        image: the open file.
        boot: what to start, and what it loads.
        folder: where each gets a folder for socket and log; must not exist. None for a new one.
        observer: told when they load.
        meanwhile: called while they start.
        before_they_run: called when they have loaded; may still raise an error.
        when_they_run: called after they were told to run (unless they stay paused); returns notes.
        together_with: a context that is left without an error only if the guests were handed over.

    Raises:
        RequestError: the folder exists, or a machine does not fit the file.
        ContentsDiffer: a disk image was written to meanwhile.
        MachineError: a QEMU does not start, or cannot load the file.
        HostError: I/O failed, or there is not enough memory.
    """
    with Fleet(boot.commands, folder, descriptors=boot.descriptors, disks=boot.disks) as fleet:
        began = time.perf_counter()
        meanwhile()
        done = time.perf_counter()
        fleet.connect(image.file)
        observer.phase("load")
        fleet.load(boot.source)
        before_they_run()  # after the load: until then somebody may have changed what QEMU has read
        refuse_written(boot.disks.recorded)
        guests = boot.identified(fleet.go_on(run=not boot.paused))
        notes = (*boot.notes, *when_they_run(guests, fleet.monitors))
        with signals.held(), together_with():
            fleet.let_go(image.path)
    return HandedOver(
        boot=boot,
        guests=guests,
        notes=notes,
        start_seconds=fleet.start_seconds,
        meanwhile_seconds=done - began,
        load_seconds=fleet.load_seconds,
    )
