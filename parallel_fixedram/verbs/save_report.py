"""Compose the report of a save."""

from __future__ import annotations

from collections.abc import Sequence

from parallel_fixedram.core.disks import Disk
from parallel_fixedram.core.reports.save import (
    SaveBytes,
    SavedDisk,
    SaveReport,
    SaveSeconds,
    SnapshotReport,
    WorkerReport,
)
from parallel_fixedram.core.save_options import ImageKind
from parallel_fixedram.engine.capture.coordinator import Coordinator
from parallel_fixedram.engine.capture.pause import Pause
from parallel_fixedram.engine.capture.task import Task
from parallel_fixedram.engine.tuning.decide import Decision
from parallel_fixedram.host.facts import host_facts
from parallel_fixedram.image.describe import block_report
from parallel_fixedram.image.draft import PublishedFile
from parallel_fixedram.verbs.account import Account


def save_report(
    path: str,
    task: Task,
    decision: Decision,
    run: Coordinator,
    pause: Pause,
    account: Account,
    published: PublishedFile,
    snapshot: SnapshotReport | None,
    disks: Sequence[tuple[Disk, str]],
) -> SaveReport:
    """The report of a save, from everything that took part in it."""
    choice, layout = task.choice, task.layout
    checking = pause.copy_seconds + sum(each.seconds for each in account.phases if each.name == "check")
    write_seconds = run.rounds[-1].seconds if snapshot else pause.ram_seconds
    return SaveReport(
        file=path,
        machine=layout.machine,
        channels=choice.channels,
        direct_io=choice.direct,
        capabilities=task.options.gate.decided(choice.channels),
        blocks=tuple(map(block_report, layout.blocks, (present.count() for present in task.ledger.present))),
        rounds=tuple(run.rounds),
        phases=tuple(account.phases),
        seconds=_seconds(run, pause, account, published, choice.channels),
        bytes=SaveBytes(
            ram=sum(saved.block.used_length for saved in layout.blocks),
            written=run.written.bytes,
            file=published.file,
            allocated=published.allocated,
            cached=published.cached,
        ),
        choice=decision.report(write_seconds, account.seconds - account.started("reserve") - checking),
        workers=tuple(
            WorkerReport(shards=each.shards, written_pages=each.tally.written_pages, seconds=each.seconds)
            for each in run.workers
        ),
        snapshot=snapshot,
        disks=tuple(
            SavedDisk(device=each.device, image=each.images[0].path, format=each.images[0].format, overlay=overlay)
            for each, overlay in disks
        ),
        image=ImageKind.LIBVIRT if layout.head else ImageKind.PLAIN,
        host=host_facts(path),
        notes=(*account.notes, *pause.notes),
    )


def _seconds(run: Coordinator, pause: Pause, account: Account, published: PublishedFile, channels: int) -> SaveSeconds:
    waited = pause.was_running
    return SaveSeconds(
        total=account.seconds,
        prepare=account.started("pause"),
        pause=pause.seconds if waited else 0.0,
        sync_disks=pause.sync_disks_seconds,
        stop=pause.stop_seconds if waited else 0.0,
        device_state=pause.state_seconds,
        ram=pause.ram_seconds,
        disks=pause.disks_seconds if waited else 0.0,
        cont=pause.cont_seconds if waited else 0.0,
        copy=pause.copy_seconds if waited else 0.0,
        scan=run.written.scan_seconds / channels,
        write=run.written.write_seconds / channels,
        digest=run.written.digest_seconds / channels,
        sync=published.sync_seconds,
        publish=published.publish_seconds,
    )
