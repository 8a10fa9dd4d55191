"""Guests that live on after the command that started them: find them by their run folders, and end them.

A process is ended only if it is the very one that was handed over, since its pid may be that of another process by now.
QEMU is asked first by its monitor, then by SIGTERM, which does the same; SIGKILL is for one that obeys neither.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from parallel_fixedram.boot.last_words import last_words
from parallel_fixedram.boot.run_folder import FleetFolder, GuestRecord, RunFolder, folder_at, known_folders
from parallel_fixedram.core.errors import HostError, MachineError, RequestError
from parallel_fixedram.core.reports.guests import EndedGuest, LivingGuest, StoppedGuest
from parallel_fixedram.host import linux
from parallel_fixedram.host.processes import forked
from parallel_fixedram.host.processes.identity import Whereabouts, own_memory, require_proc

ANSWER_SECONDS = 2.0
"""How long a monitor may take to greet, and to answer ``quit``; one with another client does neither."""
ENDING_SECONDS = 10.0
"""How long QEMU may take to end after it was asked, and again after SIGTERM."""
KILLED_SECONDS = 10.0
"""How long a process may take to be gone after SIGKILL."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Guest:
    """A guest that is alive, or was when we looked."""

    fleet: FleetFolder
    number: int
    folder: RunFolder
    record: GuestRecord
    pidfd: int
    """Of its process; readable when the process has ended."""

    @property
    def name(self) -> str:
        """``NAME/N``, as for ``stop``."""
        return f"{self.fleet.name}/{self.number}"

    def report(self) -> LivingGuest:
        """A report about it."""
        pid, memory = self.record.process.pid, None
        with contextlib.suppress(OSError):  # it has ended meanwhile
            memory = own_memory(pid)
        return LivingGuest(
            name=self.name,
            pid=pid,
            qmp=self.folder.socket,
            log=self.folder.log,
            file=self.record.file,
            since=self.record.since,
            memory=memory,
        )


class Survey:
    """Context manager that finds the guests of this user.

    It removes what ended guests and killed commands have left.

    Args:
        paths: run folders of commands to examine besides those in the usual places.

    Attributes:
        guests: those that are alive.
        ended: those that have ended since the last look.
        busy: names of run folders that a command is working with.
        notes: what could not be examined, a sentence each.

    Raises:
        HostError: /proc does not tell which processes are alive.
    """

    def __init__(self, paths: Collection[str] = ()) -> None:
        self._paths = paths
        self.guests: list[Guest] = []
        self.ended: list[EndedGuest] = []
        self.busy: list[str] = []
        self.notes: list[str] = []

    def __enter__(self) -> Survey:
        require_proc()
        with ExitStack() as stack:
            known = {fleet.path: fleet for fleet in known_folders()}
            for path in self._paths:
                for each in (path, os.path.dirname(path)):
                    if (found := folder_at(each)) and found.path not in known:
                        known[found.path] = found
            for fleet in known.values():
                self._look_at(fleet, stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _look_at(self, fleet: FleetFolder, stack: ExitStack) -> None:
        folders = fleet.each()
        if not folders:  # not a run folder, or one that is just being made
            return
        if not fleet.look():
            self.busy.append(fleet.name)
            return
        try:
            for number, folder in folders:
                try:
                    self._look_into(fleet, number, folder, stack)
                except HostError as error:
                    self.notes.append(error.message)
            if not fleet.each():
                fleet.remove()
        finally:
            fleet.let_go()

    def _look_into(self, fleet: FleetFolder, number: int, folder: RunFolder, stack: ExitStack) -> None:
        record = folder.record()
        if record is None:
            if os.path.lexists(folder.socket):  # no command works with it, and no guest was handed over
                folder.clear()
            return
        found = record.process.reach()
        if found is Whereabouts.ENDED:
            said = last_words(folder.log, "qemu", ended=False)
            name = f"{fleet.name}/{number}"
            self.ended.append(EndedGuest(name=name, pid=record.process.pid, file=record.file, said=said))
            folder.clear()
        elif isinstance(found, int):
            stack.callback(linux.close, found)
            self.guests.append(Guest(fleet=fleet, number=number, folder=folder, record=record, pidfd=found))

    def chosen(self, names: Sequence[str]) -> tuple[list[Guest], list[EndedGuest]]:
        """The guests that these names refer to: ``NAME/N``, or ``NAME`` for all of it, or a run folder.

        Raises:
            RequestError: a name refers to no guest.
            MachineError: a command is working with them.
        """
        guests: dict[str, Guest] = {}
        ended: dict[str, EndedGuest] = {}
        for name in names:
            meant = {name, os.path.realpath(name)}
            living = {each.name: each for each in self.guests if meant.intersection(_names_of(each))}
            gone = {each.name: each for each in self.ended if name in (each.name, each.name.rpartition("/")[0])}
            if name.rpartition("/")[0] in self.busy or name in self.busy:
                raise MachineError(f"a command is still working with {name!r}", hint="end that command, or wait for it")
            if not living and not gone:
                there_are = ", ".join(each.name for each in self.guests) or "none"
                raise RequestError(f"there is no guest {name!r}", hint=f"running guests: {there_are}")
            guests |= living
            ended |= gone
        return list(guests.values()), list(ended.values())


def stop(guests: Sequence[Guest]) -> list[StoppedGuest]:
    """End guests, and remove their run folders.

    Raises:
        MachineError: one does not end even after SIGKILL.
        HostError: a signal cannot be sent.
    """
    how = {guest.name: "itself" for guest in _ended(guests, 0.0)}
    asked = [guest for guest in guests if guest.name not in how and _quits(guest)]
    how |= {guest.name: "quit" for guest in _ended(asked, ENDING_SECONDS)}
    for signum, seconds in ((signal.SIGTERM, ENDING_SECONDS), (signal.SIGKILL, KILLED_SECONDS)):
        rest = [guest for guest in guests if guest.name not in how]
        for guest in rest:
            _send(guest, signum)
        how |= {guest.name: signum.name for guest in _ended(rest, seconds)}
    for guest in guests:
        if guest.name in how:
            guest.folder.clear()
            if not guest.fleet.each():
                guest.fleet.remove()
    if left := [f"{guest.name!r} (process {guest.record.process.pid})" for guest in guests if guest.name not in how]:
        raise MachineError(f"killed, but not ended yet: {', '.join(left)}", hint="it is waiting for a device or a disk")
    return [StoppedGuest(name=guest.name, pid=guest.record.process.pid, how=how[guest.name]) for guest in guests]


def _names_of(guest: Guest) -> Iterator[str]:
    yield from (guest.name, guest.fleet.name, guest.folder.path, guest.fleet.path)


def _quits(guest: Guest) -> bool:
    """Ask QEMU to quit through its monitor; returns whether it accepted."""
    from parallel_fixedram.machines.qemu.monitor import Monitor

    try:
        with Monitor(
            guest.folder.socket, timeout=ANSWER_SECONDS, greeting_timeout=ANSWER_SECONDS, pidfd=guest.pidfd
        ) as monitor:
            monitor.execute("quit")
    except MachineError:
        return forked.has_ended(guest.pidfd)
    return True


def _ended(guests: Sequence[Guest], seconds: float) -> list[Guest]:
    """Those guests that end within a time for all of them together."""
    deadline = time.monotonic() + seconds
    return [guest for guest in guests if forked.has_ended(guest.pidfd, max(0.0, deadline - time.monotonic()))]


def _send(guest: Guest, signum: signal.Signals) -> None:
    try:
        signal.pidfd_send_signal(guest.pidfd, signum)
    except ProcessLookupError:  # it has ended by itself
        pass
    except OSError as error:
        raise HostError.from_os(f"cannot end {guest.name!r} (process {guest.record.process.pid})", error) from error
