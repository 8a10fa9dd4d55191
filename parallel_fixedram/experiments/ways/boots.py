"""Ways from a file to running guests: ``restore`` and ``clone`` as people run them, and QEMU's own load.

::

    source, a QEMU that sleeps --- saved once, not timed ---> FILE ---> guests that run     timed
                                                               |          |
                                                               +-- checked against their RAM  not timed, once a case

Guests are found again by a name of their own in their command lines, so that none is left, whatever ended the run.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import psutil

from parallel_fixedram.core.errors import HostError, MachineError
from parallel_fixedram.experiments import tools
from parallel_fixedram.experiments.guest_work import SETTLING_SECONDS, GuestWatch, counter_of
from parallel_fixedram.experiments.qemu_guest import QemuGuest
from parallel_fixedram.experiments.results import Bytes, Seconds
from parallel_fixedram.experiments.ways.guest_look import Seen, look_at
from parallel_fixedram.experiments.ways.qemu_modes import load, parameters_known, set_capabilities
from parallel_fixedram.experiments.ways.saved_file import saved_file
from parallel_fixedram.experiments.ways.way import Measured, Run, drop_page_cache, file_bytes
from parallel_fixedram.host.processes import signals
from parallel_fixedram.host.processes.guardian import Guardian
from parallel_fixedram.image.image import open_image
from parallel_fixedram.image.verify import verify
from parallel_fixedram.machines.qemu.monitor import Monitor
from parallel_fixedram.verbs.open import open_qemu
from parallel_fixedram.verbs.temporary import temporary_folder

_GONE_SECONDS = 10.0


class _Boots(ABC):
    """What these ways have in common (Way)."""

    _checked: str
    """What the last run found out about its guests, which do not outlive it."""
    _seen: Seen
    """The same."""
    _running: tuple[float, ...] | None = None
    """When each of them ran, where our command says that."""

    def why_missing(self) -> str | None:
        """There may be no QEMU (Way.why_missing)."""
        return tools.why_no_qemu()

    def run(self, run: Run) -> Measured:
        """Start guests once, look at them, end them (Way.run)."""
        file = saved_file(run)
        if run.case.cache == "drop":
            drop_page_cache()
        with _made_way(run):
            began = time.perf_counter()
            seconds, seen = self._start(run, file), self._seen
        length, allocated = file_bytes(file)
        size = Bytes(
            ram=run.source.size, data=run.source.data_bytes, file=length, allocated=allocated, guests=seen.memory
        )
        touched = replace(seconds, first_touch=seen.first_touch, second_touch=seen.second_touch)
        return Measured(
            seconds=touched,
            bytes=size,
            save_at=(began, began + touched.total),
            qemu_cpu_seconds=seen.cpu_seconds,
            running=self._running,
        )

    def verify(self, run: Run) -> str:
        """All guests run, and once a case their RAM is what the file says (Way.verify)."""
        return self._checked

    @abstractmethod
    def _start(self, run: Run, file: str) -> Seconds:
        """Start the guests, have them looked at, and end them."""

    def _look(self, run: Run, file: str, guests: Sequence[tuple[str, int]]) -> None:
        """Note what these guests take, and how they were checked: path of a QMP socket and process of each.

        Raises:
            ContentsDiffer: RAM of one differs.
        """
        self._seen = look_at(guests, run.source.size if run.case.touch else 0)
        compared = run.thorough and run.watch is None  # one that is watched goes on writing
        self._checked = "ram" if compared else "loaded"
        for qmp, pid in guests if compared else ():
            with contextlib.closing(open_qemu(qmp, pid=pid)) as machine, open_image(file) as image:
                ram = {each.block.idstr: each for each in machine.guest_blocks() if each.main}
                if not ram:
                    raise MachineError(f"QEMU {pid} has no main memory to look at")
                found = verify(image, ram=ram)
            if not found.ok:
                raise run.wrong(f"a guest started from it: {found.differences[0]}")


class _Command(_Boots):
    """A command of ours that starts guests and leaves them running."""

    verb: ClassVar[str]

    @abstractmethod
    def _options(self, run: Run) -> list[str]:
        """What the command is told besides file and QEMU."""

    def _start(self, run: Run, file: str) -> Seconds:
        assert run.source.qemu is not None, "the scenario's check comes first"
        with _nobody_left() as (name, folder):
            ours = [sys.executable, "-m", "parallel_fixedram", self.verb, file, "--json", "--run-dir", folder]
            command = [
                *ours,
                *self._options(run),
                *(["--paused"] if run.watch else []),
                "--",
                *run.source.qemu.command("-name", name),
            ]
            started = time.perf_counter()
            report: dict[str, Any] = json.loads(tools.run(command))
            wall = time.perf_counter() - started
            guests = [(guest["qmp"], guest["pid"]) for guest in report["guests"]]
            phases = dict(report["seconds"])
            total = phases.pop("total")
            if run.watch:
                total = wall + _let_run(run.watch, *guests[0])
            elif wrong := [each["status"] for each in report["guests"] if each["status"] != "running"]:
                raise MachineError(f"a guest that was started is {wrong[0]!r}")
            self._running = tuple(each["seconds"] for each in report["guests"]) if not run.watch else None
            self._look(run, file, guests)
        return Seconds(total=total, wall=wall, phases=phases)


class Restore(_Command):
    """One guest whose RAM is loaded: by QEMU, or into shared memory by workers of ours."""

    verb = "restore"

    def _options(self, run: Run) -> list[str]:
        options = ["--channels", str(run.case.channels), "--experimental-multifd"]
        return [*options, *(["--shared"] if run.case.shared else [])]


class Clone(_Command):
    """Guests whose RAM is mapped from the file."""

    verb = "clone"

    def _options(self, run: Run) -> list[str]:
        return ["--count", str(run.case.count)]


class QemuLoad(_Boots):
    """QEMU alone: started, told to load, and to go on."""

    def _start(self, run: Run, file: str) -> Seconds:
        assert run.source.qemu is not None, "the scenario's check comes first"
        channels, direct = run.case.channels or 1, run.case.direct_io == "on"
        started = time.perf_counter()
        with QemuGuest(run.source.qemu.spec, incoming=True) as guest:
            parameters: dict[str, Any] = {"multifd-channels": channels} if channels > 1 else {}
            if "direct-io" in parameters_known(guest):
                parameters["direct-io"] = direct
            elif direct:
                raise tools.Missing("this QEMU cannot bypass the page cache when it loads, 9.1 and later can")
            set_capabilities(guest, ("mapped-ram", "multifd") if channels > 1 else ("mapped-ram",))
            guest.execute("migrate-set-parameters", parameters)
            if (status := load(guest, file)) != "completed":
                raise run.wrong(f"QEMU's load {status}")
            if run.watch:
                total = time.perf_counter() - started + _let_run(run.watch, guest.qmp, guest.pid)
            else:
                guest.execute("cont")
                total = time.perf_counter() - started
            self._look(run, file, [(guest.qmp, guest.pid)])
        return Seconds(total=total)


@contextlib.contextmanager
def _made_way(run: Run) -> Iterator[None]:
    """If a guest is looked at, the one that was saved stands still meanwhile: processors are left to the other."""
    if run.watch is None or run.source.qemu is None:
        yield
        return
    run.watch.begins()
    run.source.qemu.execute("stop")
    try:
        yield
    finally:
        run.source.qemu.execute("cont")


def _let_run(watch: GuestWatch, qmp: str, pid: int) -> float:
    """Let a guest that waits go on, and look at it until it has settled; returns how long it took until it ran."""
    with Monitor(qmp) as monitor, counter_of(monitor, pid) as counter:
        watch.moved(counter)
        started = time.perf_counter()
        monitor.execute("cont")
        took = time.perf_counter() - started
        time.sleep(SETTLING_SECONDS)
        watch.is_over()
    return took


@contextlib.contextmanager
def _nobody_left() -> Iterator[tuple[str, str]]:
    """A name for guests and a folder to be made for them; both are gone at the end, also if this process is killed."""
    with contextlib.ExitStack() as stack:
        with signals.held():
            place = stack.enter_context(temporary_folder(None))
        name = os.path.basename(place)
        guardian = stack.enter_context(Guardian(lambda: _end(name, place)))
        guardian.arm()
        stack.callback(guardian.disarm)
        stack.callback(_end, name, place)
        yield name, os.path.join(place, "guests")


def _end(name: str, place: str) -> None:
    """Kill the guests of that name, wait for their ends, and remove what they had."""
    found = [each for each in psutil.process_iter(["cmdline"]) if _is_named(each, name)]
    for each in found:
        with contextlib.suppress(psutil.NoSuchProcess):
            each.kill()
    _, alive = psutil.wait_procs(found, timeout=_GONE_SECONDS)
    shutil.rmtree(place, ignore_errors=True)
    if alive:
        raise HostError(f"{len(alive)} guests do not end")


def _is_named(process: psutil.Process, name: str) -> bool:
    command = process.info["cmdline"] or []
    return any(pair == ("-name", name) for pair in itertools.pairwise(command))
