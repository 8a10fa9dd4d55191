"""Decide how a save writes, from what there is to write, what writes cost here, and who waits."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence

from parallel_fixedram.core.bitmap import PageBitmap
from parallel_fixedram.core.choice import Choice, Situation, choose
from parallel_fixedram.core.cost import ASSUMED, DeviceModel, Work
from parallel_fixedram.core.protocols import GuestBlock
from parallel_fixedram.core.reports.choice import ChoiceReport
from parallel_fixedram.core.save_options import DirectIO, SaveOptions
from parallel_fixedram.engine.tuning import calibrate
from parallel_fixedram.host.files.page_cache import dirty_room


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """A choice, and the model that it is based on."""

    choice: Choice
    model: DeviceModel

    def report(self, write_seconds: float | None = None, stable_seconds: float | None = None) -> ChoiceReport:
        """The decision as reports show it.

        Args:
            write_seconds: how long writing the pages took.
            stable_seconds: how long it took from the decision until the file was on stable storage.
        """
        chosen, ratio = self.choice, None
        if stable_seconds is not None and chosen.stable_seconds > 0:
            ratio = stable_seconds / chosen.stable_seconds
        return ChoiceReport(
            channels=chosen.channels,
            direct_io=chosen.direct,
            gap_pages=chosen.gap_pages,
            shard_pages=chosen.shard_pages,
            capture=chosen.capture,
            why=chosen.why,
            predicted_write_seconds=chosen.write_seconds,
            predicted_stable_seconds=chosen.stable_seconds,
            measured_write_seconds=write_seconds,
            measured_stable_seconds=stable_seconds,
            measured_by_predicted=ratio,
            model=self.model.to_json(),
        )


def are_copied(guest_blocks: Sequence[GuestBlock]) -> bool:
    """Whether main memory can only be read by copying it."""
    return not all(each.source.views_stay_valid for each in guest_blocks if each.main)


def decide(
    options: SaveOptions,
    data: Sequence[PageBitmap],
    page_size: int,
    folder: str,
    *,
    guest_waits: bool,
    no_snapshot: str,
    copied: bool = False,
    takes_direct: bool | None = None,
) -> Decision:
    """Decide; measures what writes cost if that is not known yet.

    Args:
        options: what was requested.
        data: pages that may contain data, a bitmap for each block.
        page_size: of those pages, bytes.
        folder: where the file will be.
        guest_waits: whether a running guest will have to stand still.
        no_snapshot: why it must not be captured by a snapshot, as the end of a sentence; empty if it may.
        copied: whether RAM can only be read by copying it.
        takes_direct: whether the file can be opened for direct I/O; None if that is not known.

    Raises:
        CapabilityError: the gate refuses.
    """
    work = Work.of(data, page_size)
    model = calibrate.device_model(folder, work.size, fresh=options.writing.calibrate)
    if takes_direct is False:
        model = dataclasses.replace(model, direct={})
    elif takes_direct and not model.direct:
        model = dataclasses.replace(model, direct=ASSUMED.direct)
    situation = Situation(
        guest_waits=guest_waits,
        no_snapshot=no_snapshot,
        room=dirty_room(),
        processors=len(os.sched_getaffinity(0)),
        durable=options.publishing.durable,
        copied=copied,
    )
    if not model.direct and options.writing.direct_io is DirectIO.ON:  # only in a plan: a save has found out by trying
        model = dataclasses.replace(model, direct=ASSUMED.direct)
    choice = choose(options, work, model, situation)
    return Decision(choice=choice, model=model)
