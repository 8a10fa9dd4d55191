"""``save``: from a machine's RAM to a published file.

::

    overlays made for its disks                                                         the machine runs
    draft sized and opened, data map read, way decided, space reserved, workers up      the machine runs
    capture.before                                                                      the machine runs
    capture.rehearse, its disks synced                                                  the machine runs
    pause: device state begun | capture.stopped | device state | disks onto overlays    the machine stands still
    [if somebody tore the instant: the last two again]
    capture.after, everything but the pages, sync, name                                 the machine runs

Nothing is done while the machine stands still that can be done before or after. The file gets its name only when every
shard is acknowledged and everything is on stable storage. If somebody else tore the instant, it is captured again; if
the machine no longer has the blocks and devices that were opened, the whole save begins again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace

from parallel_fixedram.core.errors import (
    DurabilityError,
    HostError,
    MachineChanged,
    MachineError,
    RequestError,
    SnapshotFailed,
)
from parallel_fixedram.core.observer import SILENT, Observer
from parallel_fixedram.core.protocols import DiskOverlays, Machine
from parallel_fixedram.core.reports.save import SaveReport
from parallel_fixedram.core.save_options import (
    CaptureMode,
    Capturing,
    DirectIO,
    Disks,
    Gate,
    Publishing,
    SaveOptions,
    Writing,
)
from parallel_fixedram.core.targets import recorded_page_bits
from parallel_fixedram.core.uri import FileTarget, parse_uri
from parallel_fixedram.engine.capture.capture import Capture
from parallel_fixedram.engine.capture.coordinator import Coordinator
from parallel_fixedram.engine.capture.pause import Pause
from parallel_fixedram.engine.capture.rounds import dirty_log
from parallel_fixedram.engine.capture.task import Task
from parallel_fixedram.engine.capture.ways import WAYS
from parallel_fixedram.engine.capture.write_protect import address_space
from parallel_fixedram.engine.pages.early_writeback import EarlyWriteback
from parallel_fixedram.engine.pages.ledger import Ledger
from parallel_fixedram.engine.pages.staging import SLOTS
from parallel_fixedram.engine.tuning.decide import Decision, are_copied, decide
from parallel_fixedram.engine.workers.pool import WorkerPool
from parallel_fixedram.format.device_sections import VMGENID, names_of, read_device_sections
from parallel_fixedram.format.layout import FileLayout
from parallel_fixedram.host.files.page_cache import dirty_room
from parallel_fixedram.host.files.publish import check_target, replaced_link
from parallel_fixedram.image.draft import Draft
from parallel_fixedram.image.instant_copy import InstantCopy
from parallel_fixedram.verbs.account import Account
from parallel_fixedram.verbs.save_disks import overlays_for
from parallel_fixedram.verbs.save_image import head_for
from parallel_fixedram.verbs.save_report import save_report

NO_VMGENID = "the machine has no vmgenid device: its clones will share future random numbers"
CHANGED = "memory or devices were plugged in or out while the machine was being saved"

MOST_INSTANTS = 4
"""How often a guest is stopped at most, if others tear the instant each time."""
MOST_SAVES = 3
"""How often a save begins at most, if blocks or devices come or go each time."""


def save(
    machine: Machine | Callable[[], Machine],
    uri: str,
    *,
    gate: Gate | None = None,
    writing: Writing | None = None,
    capture: Capturing | None = None,
    publishing: Publishing | None = None,
    disks: Disks | None = None,
    observer: Observer = SILENT,
) -> SaveReport:
    """Save a machine's RAM and device state into a mapped-ram file with parallel workers.

    Args:
        machine: what to save; or a function that opens it, which is called only after the gate has agreed. In that case
            the machine is closed here.
        uri: a path, or ``file:PATH[,offset=SIZE]``.
        gate: channels and capabilities; None for one channel.
        writing: how pages get into the file; None to choose automatically.
        capture: how the file comes to contain one instant.
        publishing: how the file is finished and gets its name.
        disks: what to do about disks that the guest writes to; by default a running guest must not have any.
        observer: told of phases, bytes, shards and notes.

    Returns:
        What was done; bytes and seconds are in the report's fields.

    Raises:
        CapabilityError: the gate refuses, or the target cannot seek. Nothing was touched.
        RequestError: the request is impossible, or the file exists. Nothing was touched.
        MachineError: the machine did not stop, or is gone.
        InstantDiffers: a check of the instant was requested, and failed. No file is left.
        HostError: I/O failed (ENOSPC, for example), or there is not enough memory; a WorkerError if no worker survived.
            No file is left.
        DurabilityError: the file is published, but may not survive a power cut.
    """
    target, options = parse_uri(uri), SaveOptions.of(gate, writing, capture, publishing, disks)
    check_target(target.path, overwrite=options.publishing.overwrite)
    with ExitStack() as stack:
        if callable(machine):
            machine = machine()
            stack.callback(machine.close)
        if machine.holds(target.path):
            raise RequestError(f"{target.path!r} is the RAM to be saved")
        return _save_until_it_stays(machine, target, options, observer)


def _save_until_it_stays(machine: Machine, target: FileTarget, options: SaveOptions, observer: Observer) -> SaveReport:
    """Save; begin again if blocks or devices came or went meanwhile, or if a snapshot failed."""
    notes, left = list(replaced_link(target.path)), MOST_SAVES
    while True:
        left -= 1
        try:
            return _save(machine, target, options, Account(observer, notes))
        except MachineChanged as error:
            if not left:
                raise MachineChanged(f"{error.message}, {MOST_SAVES} times", hint=error.hint) from error
            why = error.message
        except DurabilityError:
            raise
        except SnapshotFailed as error:
            changed = machine.look_again()  # if the machine has ended, this raises the better error
            if not changed and options.capture.mode is CaptureMode.AUTO:
                options = replace(options, capture=replace(options.capture, mode=CaptureMode.COMPARE))
            elif not changed or not left:
                raise
            why = CHANGED if changed else error.message
        except HostError:  # memory that was unplugged cannot be read
            if not left or not machine.look_again():
                raise
            why = CHANGED
        again = f"{why}: the save began again"
        observer.note(again)
        notes.append(again)


def _save(machine: Machine, target: FileTarget, options: SaveOptions, account: Account) -> SaveReport:
    """Save once."""
    with ExitStack() as stack:
        ran = machine.is_running()
        overlays = stack.enter_context(overlays_for(machine, options.disks, runs=ran))
        for note in overlays.prepare():
            account.note(note)
        account.end("disks")
        draft, task, decision = _begin(machine, target, options, account, stack)
        capture = WAYS[task.choice.capture](task)
        if capture.reserves:
            draft.reserve(task.guest_blocks, task.ledger, task.choice)
        account.end("reserve")
        stack.enter_context(capture)
        jobs = capture.jobs()
        pool = stack.enter_context(WorkerPool(jobs, task.choice.channels, stall_seconds=options.writing.stall_seconds))
        writeback = stack.enter_context(EarlyWriteback(draft.fd, dirty_room()))
        run = Coordinator(task, pool, jobs, writeback, account.observer, account.began)
        copy = _copy(task, stack)
        account.end("start")
        capture.before(run)
        account.end("before")
        pause, state = _one_instant(machine, capture, run, overlays, copy, account)
        if pause.was_running and not ran:  # somebody let it go on, and now it writes to its disks
            overlays_for(machine, options.disks, runs=True)
        if task.layout.head and pause.was_running != task.guest_waits:  # the file's head records that
            raise MachineChanged("somebody stopped the domain, or let it go on, before it was saved")
        capture.after(run)
        account.end("after")
        pool.dismiss()  # workers end while the file is being finished
        disks = overlays.frozen(durable=options.publishing.durable)
        draft.finish(task.guest_blocks, task.ledger, state, task.choice.gap_pages, disks=[disk for disk, _ in disks])
        if state and VMGENID not in names_of(read_device_sections(state)):
            account.note(NO_VMGENID)
        # here, because the guest's memory is released while the file is being finished
        snapshot = capture.let_go()
        account.end("finish")
        if copy:
            with draft.image() as image:
                copy.check(image, account.observer)
            account.end("check")
        published = draft.publish(account.observer)
        # only now that the file is there: it may end the guest
        machine.saved()
        account.end("publish")
        return save_report(target.path, task, decision, run, pause, account, published, snapshot, disks)


def _begin(
    machine: Machine, target: FileTarget, options: SaveOptions, account: Account, stack: ExitStack
) -> tuple[Draft, Task, Decision]:
    """Make the file, find out what there is to save, and decide how."""
    guest_blocks = machine.guest_blocks()
    dirty = dirty_log(machine) if options.capture.mode is CaptureMode.ROUNDS else None
    guest_waits = machine.is_running()
    space, no_snapshot = address_space(machine, options.capture.mode) if guest_waits else (None, "")
    blocks = [each.block for each in guest_blocks]
    page_bits = recorded_page_bits(machine.target)
    head = head_for(machine, target, options.publishing.image, runs=guest_waits)
    layout = FileLayout.plan(machine.name, blocks, target.offset, head=head, target=machine.target, page_bits=page_bits)
    ledger = Ledger(blocks)
    draft = stack.enter_context(Draft(target.path, layout, options.writing, options.publishing))
    ledger.map_data(guest_blocks)
    machine.get_ready()
    account.observer.phase("decide")
    takes_direct = None if options.writing.direct_io is DirectIO.OFF else draft.direct is not None
    page_size = blocks[0].page_size
    decision = decide(
        options,
        ledger.data,
        page_size,
        draft.folder,
        guest_waits=guest_waits,
        no_snapshot=no_snapshot,
        copied=are_copied(guest_blocks),
        takes_direct=takes_direct,
    )
    choice = decision.choice
    if choice.direct and draft.direct and not draft.direct.has_queue(choice.channels * SLOTS):
        account.note("the kernel allows no asynchronous I/O: direct writes are done one at a time")
    account.end("decide")
    task = Task(
        guest_blocks=guest_blocks,
        layout=layout,
        ledger=ledger,
        guest_waits=guest_waits,
        options=options,
        choice=choice,
        buffered=draft.buffered,
        direct=draft.direct,
        dirty=dirty,
        address_space=space,
    )
    return draft, task, decision


def _copy(task: Task, stack: ExitStack) -> InstantCopy | None:
    """The copy of RAM to make while the machine stands still, if that is requested."""
    if not task.options.capture.check_instant:
        return None
    return stack.enter_context(InstantCopy(task.guest_blocks, task.ledger.data, task.choice.channels))


def _one_instant(
    machine: Machine,
    capture: Capture,
    run: Coordinator,
    overlays: DiskOverlays,
    copy: InstantCopy | None,
    account: Account,
) -> tuple[Pause, bytes]:
    """Stop the machine and do what has to be done then; repeat this until nobody else has acted on it meanwhile.

    Returns:
        The pause, and its device state.
    """
    torn, after = None, ""
    for _ in range(MOST_INSTANTS):
        account.observer.phase("prepare")
        pause = Pause(machine)
        overlays.prepare()  # new ones if the last try has used them
        pause.prepare()
        capture.rehearse(run, torn=torn)
        if torn:
            account.note(f"{torn} while it was being saved: the last round was repeated, after a stop of {after}")
        # again, because the rehearsal took its time; now there is little left to sync
        pause.prepare()
        account.end("prepare")
        with pause:
            pause.begin_device_state()
            started = time.perf_counter()
            capture.stopped(run)
            pause.ram_seconds = time.perf_counter() - started
            state = pause.device_state()  # wait for it: it belongs to this instant
            started = time.perf_counter()
            # late, because this alone cannot be undone
            overlays.freeze()
            pause.disks_seconds = time.perf_counter() - started
            if copy:
                started = time.perf_counter()
                copy.take(account.observer)
                pause.copy_seconds = time.perf_counter() - started
        account.end("pause")
        torn = pause.torn
        if torn is None:
            if machine.look_again():
                raise MachineChanged(CHANGED, hint="save when nothing is being plugged in or out")
            return pause, state
        after = f"{1000 * pause.seconds if pause.was_running else 0.0:.1f} ms"
    raise MachineError(f"{torn} while it was being saved, in each of {MOST_INSTANTS} attempts")
