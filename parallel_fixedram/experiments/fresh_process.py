"""Orders to a fresh process, and its answers: one JSON object each way.

What is ours is measured as people run it, in a process that has just started: no memory, mapping or cache of an
earlier run is in it. ``child.py`` is the other end.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from parallel_fixedram.core import errors
from parallel_fixedram.core.errors import FixedRamError, HostError, WorkerError
from parallel_fixedram.experiments import tools

_MODULE = "parallel_fixedram.experiments.child"
_WATCH_SECONDS = 0.005


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOrder:
    """What the process shall do."""

    way: str
    path: str
    """The file to write."""
    ram: Mapping[str, str] = field(default_factory=dict)
    """RAM as files, by block name."""
    qmp: str | None = None
    """QMP socket of a QEMU."""
    pid: int | None = None
    """Its process."""
    domain: str | None = None
    """Name of a domain of libvirt."""
    guest: str | None = None
    """A built-in guest that the process itself shall have running meanwhile."""
    channels: int = 1
    direct_io: str = "off"
    gap_pages: int | str = "auto"
    shard_pages: int | str = "auto"
    queue_depth: int | str = "auto"
    """Direct writes in flight of each worker; 0 for one by one."""
    calibrate: bool = False
    capture: str = "auto"
    durability: str = "full"
    dirty: float | None = None
    rounds: int | None = None
    seed: int = 1
    trace: bool = False
    """Whether to answer with the time line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunAnswer:
    """What it did."""

    seconds: Mapping[str, Any]
    """Fields of results.Seconds."""
    bytes: Mapping[str, Any]
    """Fields of results.Bytes."""
    report: Mapping[str, Any] | None = None
    growth: list[tuple[int, int]] | None = None
    sequential: list[tuple[int, int]] | None = None
    timeline: list[tuple[int, float, float, int, int]] | None = None
    write_bins: list[int] | None = None
    save_at: tuple[float, float] | None = None
    """By ``time.perf_counter``, like ``pause_at``."""
    pause_at: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class FinishedRun:
    """An answer, and what was seen from outside."""

    answer: RunAnswer
    wall: float
    """Seconds from start to end of the process."""
    private_bytes_peak: int
    """See results.Instrumented; 0 where nobody watched."""


def carry_out(order: RunOrder, *, watch: bool = False) -> FinishedRun:
    """Have a fresh process do it.

    Args:
        order: what to do.
        watch: look at its memory every few milliseconds.

    Raises:
        FixedRamError: what was raised there.
        WorkerError: it ended without an answer.
    """
    started = time.perf_counter()
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", _MODULE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=tools.dying_with_us(),
        )
    except OSError as error:
        raise HostError.from_os("cannot start a process", error) from error
    watcher = _Watcher(process.pid) if watch else None
    try:
        said, complaint = _talk(process, json.dumps(asdict(order)).encode(), watcher)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
    return FinishedRun(
        _answer(said, complaint, process.returncode), time.perf_counter() - started, watcher.peak if watcher else 0
    )


def _talk(process: subprocess.Popen[bytes], order: bytes, watcher: _Watcher | None) -> tuple[bytes, str]:
    """Send the order; collect all that the process prints until it ends."""
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    with process.stdin, contextlib.suppress(BrokenPipeError):
        process.stdin.write(order)
    said = {process.stdout.fileno(): b"", process.stderr.fileno(): b""}
    out, err = said
    poll = select.poll()
    for fd in said:
        poll.register(fd, select.POLLIN)
    left = set(said)
    while left:
        for fd, _ in poll.poll(_WATCH_SECONDS * 1000 if watcher else None):
            data = os.read(fd, 1 << 16)
            said[fd] += data
            if not data:
                poll.unregister(fd)
                left.discard(fd)
        if watcher:
            watcher.look(_bystanders(said[out]))
    process.stdout.close()
    process.stderr.close()
    return said[out], said[err].decode(errors="replace")


def _bystanders(said: bytes) -> set[int]:
    """Processes under it that are no part of a save: the guest, which the first line names."""
    first, newline, _ = said.partition(b"\n")
    return set(json.loads(first).get("bystanders", [])) if newline else set()


def _answer(said: bytes, complaint: str, code: int) -> RunAnswer:
    lines = said.splitlines()
    data = json.loads(lines[-1]) if said.endswith(b"\n") else {}
    if not data.keys() & {"seconds", "error"}:
        last = complaint.strip().splitlines()[-1:] or ["it said nothing"]
        raise WorkerError(f"the process that measures ended with code {code}: {last[0]}")
    if error := data.get("error"):
        raise _raised(error)
    return RunAnswer(**data)


def raised_to_json(error: FixedRamError) -> dict[str, Any]:
    """An expected error, to be raised again on the other side."""
    return {"kind": type(error).__name__, "message": error.message, "hint": error.hint}


def _raised(data: Mapping[str, Any]) -> FixedRamError:
    kind = getattr(errors, data["kind"], WorkerError)
    error = (kind if issubclass(kind, FixedRamError) else WorkerError)(data["message"], hint=data["hint"])
    assert isinstance(error, FixedRamError)
    return error


class _Watcher:
    """Notes the most anonymous memory that a process and those under it have at a time.

    Args:
        pid: of the process.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self.peak = 0

    def look(self, bystanders: set[int]) -> None:
        """Sum up now."""
        self.peak = max(self.peak, sum(_anonymous_bytes(pid) for pid in _family(self._pid, bystanders)))


def _family(pid: int, bystanders: set[int]) -> Iterator[int]:
    if pid in bystanders:
        return
    yield pid
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/children", encoding="ascii") as file:
                for child in file.read().split():
                    yield from _family(int(child), bystanders)


def _anonymous_bytes(pid: int) -> int:
    with contextlib.suppress(OSError), open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
        for line in file:
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    return 0
