"""``plan``: what a save would write, how, and how long that would take; nothing is written."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import ExitStack

from parallel_fixedram.core.cost import Work
from parallel_fixedram.core.protocols import Machine
from parallel_fixedram.core.reports.plan import PlanReport
from parallel_fixedram.core.save_options import CaptureMode, Capturing, Gate, Publishing, SaveOptions, Writing
from parallel_fixedram.core.uri import parse_uri
from parallel_fixedram.engine.capture.rounds import dirty_log
from parallel_fixedram.engine.capture.write_protect import address_space
from parallel_fixedram.engine.pages.ledger import Ledger
from parallel_fixedram.engine.tuning.decide import are_copied, decide
from parallel_fixedram.host.facts import host_facts
from parallel_fixedram.host.files.publish import check_target


def plan(
    machine: Machine | Callable[[], Machine],
    uri: str,
    *,
    gate: Gate | None = None,
    writing: Writing | None = None,
    capture: Capturing | None = None,
    publishing: Publishing | None = None,
) -> PlanReport:
    """Predict how ``save`` would write, and how long that would take, without stopping the machine or making a file.

    If it is not known yet what writes cost in that folder, it is measured with a file without a name. Arguments and
    errors are those of ``save``, except that a file with that name may exist.
    """
    target, options = parse_uri(uri), SaveOptions.of(gate, writing, capture, publishing)
    check_target(target.path, overwrite=True)
    with ExitStack() as stack:
        if callable(machine):
            machine = machine()
            stack.callback(machine.close)
        return _plan(machine, target.path, options)


def _plan(machine: Machine, path: str, options: SaveOptions) -> PlanReport:
    started = time.perf_counter()
    guest_blocks = machine.guest_blocks()
    if options.capture.mode is CaptureMode.ROUNDS:
        dirty_log(machine)  # raises if there is none
    guest_waits = machine.is_running()
    _, no_snapshot = address_space(machine, options.capture.mode) if guest_waits else (None, "")
    ledger = Ledger([each.block for each in guest_blocks])
    ledger.map_data(guest_blocks)
    page_size = guest_blocks[0].block.page_size
    folder = os.path.dirname(path) or "."  # not realpath: a link would be replaced, not followed
    decision = decide(
        options,
        ledger.data,
        page_size,
        folder,
        guest_waits=guest_waits,
        no_snapshot=no_snapshot,
        copied=are_copied(guest_blocks),
    )
    work = Work.of(ledger.data, page_size)
    calls, size = work.merged(decision.choice.gap_pages, decision.choice.window_pages)
    return PlanReport(
        file=path,
        ram=sum(each.block.used_length for each in guest_blocks),
        data_pages=work.pages,
        runs=work.runs,
        calls=calls,
        bytes=size,
        waits=guest_waits,
        choice=decision.report(),
        host=host_facts(folder),
        seconds=time.perf_counter() - started,
    )
