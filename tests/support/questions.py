"""What a monitor is asked by us, and what has to hold of its answers, whatever they are."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from support.answers import Answering
from support.mutants import said

from parallel_fixedram.boot import incoming
from parallel_fixedram.core.errors import FixedRamError
from parallel_fixedram.core.observer import SILENT
from parallel_fixedram.machines.qemu import (
    commit,
    discovery,
    disks,
    drives,
    examine,
    jobs,
    overlays,
    target,
    unreachable,
    unwatched,
)
from parallel_fixedram.machines.qemu.monitor import Monitor
from parallel_fixedram.machines.qemu.session import TimedOut

ANSWERS = Path(__file__).parent / "answers.json"
"""What a QEMU said, by command and arguments; of its images in FOLDER."""


def _load(monitor: Monitor) -> None:
    incoming.load(monitor, incoming.IncomingStream(path="/nowhere"))


def _memory(monitor: Monitor) -> None:
    makeup = discovery.makeup(monitor)
    unreachable.refuse_unreachable_memory(monitor, makeup.blocks[:1])
    unwatched.refuse_unwatched(monitor, makeup)


def _machine(monitor: Monitor) -> None:
    blocks = [each.ramblock() for each in discovery.ramblocks(monitor)]
    incoming.check_machine(monitor, "pc-q35-10.0", blocks, "x86_64")


def _overlays(monitor: Monitor) -> None:
    found = drives.find_drives(monitor, os.getpid())
    overlays.left_overlays(monitor, found)
    overlays.remove_nodes(monitor, "#nothing")
    list(overlays._planned(monitor, [each for each in found if not each.why_not], "/nowhere"))


def _merge(monitor: Monitor) -> None:
    for drive in [each for each in drives.find_drives(monitor, os.getpid()) if not each.why_not]:
        commit.merge(monitor, drive, len(drive.nodes) - 1, "a disk", SILENT)
        return


QUESTIONS: dict[str, Callable[[Monitor], object]] = {
    "state": lambda monitor: (discovery.state_to_save(monitor), target.read_target(monitor)),
    "settings": target.check_settings,
    "machine": _machine,
    "machine types": discovery.machine_types,
    "memory": _memory,
    "what cannot be saved": discovery.refuse_what_cannot_be_saved,
    "disks": lambda monitor: list(examine._disks(monitor, os.getpid(), True)),
    "disks to sync": lambda monitor: list(disks._written_nodes(monitor)),
    "nodes": lambda monitor: (drives.nodes_in_use(monitor), drives.used_nodes(monitor)),
    "overlays": _overlays,
    "a job": lambda monitor: jobs.run_job(monitor, "a disk", lambda name: None, "job"),
    "a job's progress": lambda monitor: list(jobs.follow_job(monitor, "a disk", "job")),
    "a job, cancelled": lambda monitor: jobs.cancel_job(monitor, "a disk", "job"),
    "loading": _load,
    "going on": lambda monitor: incoming.go_on(monitor, run=True),
    "merging": _merge,
}


@contextmanager
def answers(folder: Path) -> Iterator[dict[str, Any]]:
    """What a QEMU said, of images that this process has open as that QEMU had."""
    opened = [os.open(folder / name, os.O_RDWR | os.O_CREAT) for name in ("a.qcow2", "b.img", "c.img")]
    yield json.loads(ANSWERS.read_text().replace("FOLDER", str(folder)))
    for fd in opened:
        os.close(fd)


def told(qemu: Answering, question: Callable[[Monitor], object]) -> list[dict[str, Any]]:
    """The messages that come when nothing is altered."""
    messages: list[dict[str, Any]] = []
    qemu.begin(heard=messages.append)
    question(qemu.monitor)
    return messages


def key_of(message: dict[str, Any]) -> str:
    """Where a message says what matters."""
    return "data" if "event" in message else "return"


def sent(message: object) -> bytes:
    return said(message) + b"\r\n"


def is_refused(question: Callable[[Monitor], object], monitor: Monitor) -> bool:
    try:
        question(monitor)
    except TimedOut:
        raise AssertionError("waits for what nobody has promised") from None
    except FixedRamError as found:
        error = found
    else:
        return False
    assert error.message.isprintable(), error.message
    return True
