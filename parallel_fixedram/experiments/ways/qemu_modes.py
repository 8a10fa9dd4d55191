"""QEMU's own ways to save a guest to a file: stop, migrate until it is completed, cont; live, QEMU stops it itself.

Always into a new file, with ``max-bandwidth`` 0, which is no limit; capabilities and parameters are set before the
guest is stopped. The pause is from ``stop`` until ``cont`` is answered. QEMU syncs nothing: the total includes an
fdatasync of ours.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from parallel_fixedram.core.errors import MachineError
from parallel_fixedram.experiments import tools
from parallel_fixedram.experiments.qemu_guest import QemuGuest
from parallel_fixedram.experiments.results import Bytes, Seconds
from parallel_fixedram.experiments.ways.way import Measured, Run, Stretch, file_bytes, sync_file
from parallel_fixedram.verbs.verify import verify

SECONDS = 600.0
"""How long a migration may take."""
_POLL_SECONDS = 0.001
ENDED = ("completed", "failed", "cancelled")
_DOWNTIME_MS = 300
"""QEMU's default: how long a guest may stand still at the end of a live migration."""
_RATE = 1.5
"""A live migration is given so many times the bandwidth of what its guest dirties: each round is that much shorter."""


@dataclass(frozen=True, slots=True)
class QemuMode:
    """One set of capabilities (Way)."""

    capabilities: tuple[str, ...] = ()
    direct_io: bool = False

    def why_missing(self) -> str | None:
        """There may be no QEMU (Way.why_missing)."""
        return tools.why_no_qemu()

    def run(self, run: Run) -> Measured:
        """Migrate once (Way.run)."""
        guest = run.source.qemu
        assert guest is not None, "the scenario's check comes first"
        parameters: dict[str, Any] = {"max-bandwidth": 0}
        if "multifd" in self.capabilities:
            parameters["multifd-channels"] = run.case.channels
        if self.direct_io or "direct-io" in parameters_known(guest):  # which came with 9.1
            parameters["direct-io"] = self.direct_io
        if run.case.live:
            parameters["downtime-limit"] = _DOWNTIME_MS
            return run_through(run, guest, self.capabilities, parameters, goes_on=False)
        set_capabilities(guest, self.capabilities)
        guest.execute("migrate-set-parameters", parameters)
        if run.case.rounds:
            return _migrate_live(run, guest, run.case.rounds)
        return _migrate_stopped(run, guest)

    def verify(self, run: Run) -> str:
        """Structure; every page against RAM that stands still. A stream is loaded once a case (Way.verify)."""
        if "mapped-ram" not in self.capabilities:
            return _load(run) if run.thorough else _check_length(run)
        ram = run.source.ram if run.source.stands_still else {}
        found = verify(run.path, ram=ram, quick=not ram)
        if not found.ok:
            raise run.wrong(f"{found.differences[0]}")
        return "ram" if ram else "structure"


MODES: Mapping[str, QemuMode] = {
    "qemu-file": QemuMode(),
    "qemu-mapped-ram": QemuMode(("mapped-ram",)),
    "qemu-multifd": QemuMode(("mapped-ram", "multifd")),
    "qemu-multifd-direct": QemuMode(("mapped-ram", "multifd"), direct_io=True),
}


def parameters_known(guest: QemuGuest) -> Mapping[str, Any]:
    """Migration parameters of a QEMU, and their values."""
    found: Mapping[str, Any] = guest.execute("query-migrate-parameters")
    return found


def load(guest: QemuGuest, path: str) -> str:
    """Have a QEMU that waits load a file; returns how that ended."""
    with guest.monitor.listen("MIGRATION") as events:
        guest.execute("migrate-incoming", {"uri": f"file:{path}"})
        while (status := str(events.wait(SECONDS)["data"]["status"])) not in ENDED:
            pass
    return status


def set_capabilities(guest: QemuGuest, wanted: tuple[str, ...]) -> None:
    """Exactly these, and events."""
    known = [each["capability"] for each in guest.execute("query-migrate-capabilities")]
    states = [{"capability": name, "state": name in ("events", *wanted)} for name in known]
    guest.execute("migrate-set-capabilities", {"capabilities": states})


def _migrate_stopped(run: Run, guest: QemuGuest) -> Measured:
    started = time.perf_counter()
    guest.execute("stop")
    try:
        with guest.monitor.listen("MIGRATION") as events:
            guest.execute("migrate", {"uri": f"file:{run.path}"})
            while (status := events.wait(SECONDS)["data"]["status"]) not in ENDED:
                pass
        written = time.perf_counter()
    finally:
        _cont(guest)
    resumed = time.perf_counter()
    state = completed(guest, status)
    sync_start = time.perf_counter()
    sync_file(run.path)
    ended = time.perf_counter()
    total = resumed - started + ended - sync_start
    seconds = Seconds(total=total, last_write=written - started, pause=resumed - started)
    return measured(run, state, seconds, save_at=(started, ended), pause_at=(started, resumed))


def _migrate_live(run: Run, guest: QemuGuest, rounds: int) -> Measured:
    """Migrate while the guest goes on dirtying; it is stopped after so many rounds, the last of which ends it."""
    rate = int(run.source.qemu.spec.dirty_rate * _RATE) if run.source.qemu else 0
    # a downtime this short is never within reach
    guest.execute("migrate-set-parameters", {"max-bandwidth": rate, "downtime-limit": 1})
    growth: list[tuple[int, int]] = []
    status, done = "", 0
    with guest.monitor.listen("MIGRATION", "MIGRATION_PASS") as events:
        started = time.perf_counter()
        guest.execute("migrate", {"uri": f"file:{run.path}"})
        while done < rounds - 1 and status not in ENDED:
            data = events.wait(SECONDS)["data"]
            status = data.get("status", status)
            if (done := _rounds_done(data, done)) > len(growth):
                growth.append((done, file_bytes(run.path)[1]))
        stopped = time.perf_counter()
        guest.execute("stop")
        try:
            guest.execute("migrate-set-parameters", {"max-bandwidth": 0})
            while status not in ENDED:
                status = events.wait(SECONDS)["data"].get("status", status)
            written = time.perf_counter()
        finally:
            _cont(guest)
    resumed = time.perf_counter()
    state = completed(guest, status)
    growth.append((len(growth) + 1, file_bytes(run.path)[1]))
    sync_file(run.path)
    total = time.perf_counter() - started
    return measured(
        run,
        state,
        Seconds(total=total, last_write=written - started, pause=resumed - stopped),
        growth=tuple(growth),
    )


def run_through(
    run: Run, guest: QemuGuest, capabilities: tuple[str, ...], parameters: dict[str, Any], *, goes_on: bool
) -> Measured:
    """Migrate a guest that runs, for as long as QEMU takes; when it stood still the events STOP and RESUME say.

    Args:
        run: what is measured.
        guest: its QEMU.
        capabilities: exactly these.
        parameters: of the migration.
        goes_on: whether QEMU lets it go on by itself; otherwise it is told to when the migration has ended.
    """
    set_capabilities(guest, capabilities)
    guest.execute("migrate-set-parameters", parameters)
    moments: dict[str, float] = {}
    with guest.monitor.listen("MIGRATION", "STOP", "RESUME") as events:
        began = time.perf_counter()
        guest.execute("migrate", {"uri": f"file:{run.path}"})
        status = ""
        while status not in ENDED:
            event = events.wait(SECONDS)
            moments[event["event"]] = _moment(event)
            status = event.get("data", {}).get("status", status)
        written = time.perf_counter()
        if not goes_on:
            _cont(guest)
            moments["RESUME"] = time.perf_counter()
    state = completed(guest, status)
    sync_file(run.path)
    ended = time.perf_counter()
    pause = moments["STOP"], moments["RESUME"]
    seconds = Seconds(total=ended - began, last_write=written - began, pause=pause[1] - pause[0])
    return measured(run, state, seconds, save_at=(began, ended), pause_at=pause)


def _moment(event: Mapping[str, Any]) -> float:
    """When it happened, by ``time.perf_counter``."""
    stamp = event["timestamp"]
    happened: float = stamp["seconds"] + stamp["microseconds"] / 1e6
    return time.perf_counter() - (time.time() - happened)


def _cont(guest: QemuGuest) -> None:
    """Let the guest go on; that a migration is completed is told a moment before QEMU lets it, and that by no event."""
    while guest.execute("query-status")["status"] == "finish-migrate":
        time.sleep(_POLL_SECONDS)
    guest.execute("cont")


def _rounds_done(data: Mapping[str, Any], before: int) -> int:
    """Sweeps over RAM that are through, as an event tells: the dirty log is fetched before each, the first too."""
    return max(int(data.get("pass", 0)) - 1, before)


def completed(guest: QemuGuest, status: str) -> Mapping[str, Any]:
    """What QEMU tells of the migration.

    Raises:
        MachineError: it failed.
    """
    state: Mapping[str, Any] = guest.execute("query-migrate")
    if status != "completed":
        raise MachineError(f"QEMU's migration {status}: {state.get('error-desc') or 'it does not say why'}")
    return state


def measured(
    run: Run,
    state: Mapping[str, Any],
    seconds: Seconds,
    *,
    growth: tuple[tuple[int, int], ...] | None = None,
    save_at: Stretch | None = None,
    pause_at: Stretch | None = None,
) -> Measured:
    """What is stored of a migration; ``state`` is as ``query-migrate`` tells it."""
    ram = state.get("ram", {})
    length, allocated = file_bytes(run.path)
    data = ram.get("normal-bytes")
    return Measured(
        seconds=seconds,
        bytes=Bytes(
            ram=run.source.size,
            data=run.source.data_bytes if growth else data,
            written=data,
            file=length,
            allocated=allocated,
        ),
        growth=growth,
        save_at=save_at,
        pause_at=pause_at,
    )


def _check_length(run: Run) -> str:
    length, _ = file_bytes(run.path)
    if length < run.source.data_bytes:
        raise run.wrong(f"{length} bytes, expected {run.source.data_bytes} at least")
    return "size"


def _load(run: Run) -> str:
    """Have a second QEMU load it."""
    assert run.source.qemu is not None
    with QemuGuest(run.source.qemu.spec, incoming=True) as guest:
        set_capabilities(guest, ())
        status = load(guest, run.path)
    if status != "completed":
        raise run.wrong("QEMU does not load it")
    return "loaded"
