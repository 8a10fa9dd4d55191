"""Plan a save: what there is to write, how it would be written, and how long that would take; nothing is written."""

from __future__ import annotations

import os
import time

from parallel_fixedram.core.bitmap import PageBitmap
from parallel_fixedram.core.cost import Work
from parallel_fixedram.core.protocols import Machine
from parallel_fixedram.core.reports.plan import PlanReport
from parallel_fixedram.engine.pages.bitmaps import map_data
from parallel_fixedram.engine.tuning.decide import decide
from parallel_fixedram.engine.tuning.save_options import SaveOptions
from parallel_fixedram.host.facts import host_facts


def plan_save(machine: Machine, path: str, options: SaveOptions) -> PlanReport:
    """What ``save`` would do; the machine is neither stopped nor changed, and no file is made.

    Where nobody knows yet what writes cost in that folder, it is measured in a file without a name.

    Args:
        machine: what would be saved.
        path: where to.
        options: how.

    Raises:
        FixedRamError: the machine cannot be reached.
    """
    started = time.perf_counter()
    guest_blocks = machine.guest_blocks()
    data = [PageBitmap(each.block.pages) for each in guest_blocks]
    map_data(guest_blocks, data)
    page_size = guest_blocks[0].block.page_size
    waits = machine.prepare()
    folder = os.path.dirname(path) or "."  # a link of that name would be replaced, not followed
    decision = decide(options, data, page_size, folder, waits=waits)
    work = Work.of(data, page_size)
    calls, size = work.merged(decision.choice.gap_pages, decision.choice.window_pages)
    return PlanReport(
        file=path,
        ram=sum(each.block.used_length for each in guest_blocks),
        data_pages=work.pages,
        runs=work.runs,
        calls=calls,
        bytes=size,
        waits=waits,
        choice=decision.report(),
        host=host_facts(folder),
        seconds=time.perf_counter() - started,
    )
