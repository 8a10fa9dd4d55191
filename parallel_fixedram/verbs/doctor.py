"""``doctor``: whether a save would work here, by which capture, and what is missing; nothing is changed."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from parallel_fixedram.core.choice import way_to_capture
from parallel_fixedram.core.errors import FixedRamError, HostError, unopened
from parallel_fixedram.core.qmp_address import qmp_socket
from parallel_fixedram.core.reports.doctor import DoctorReport, Finding, Section, Verdict, found, missed, tried
from parallel_fixedram.core.save_options import CaptureMode, Disks, DisksMode
from parallel_fixedram.engine.capture.write_protect import address_space
from parallel_fixedram.verbs.examine_folder import examine_folder
from parallel_fixedram.verbs.examine_host import examine_host
from parallel_fixedram.verbs.open import open_qemu
from parallel_fixedram.verbs.save_disks import overlays_for

if TYPE_CHECKING:
    from parallel_fixedram.core.protocols import Machine
    from parallel_fixedram.machines.qemu.machine import QemuMachine

_FOR_READING = ("reading RAM", "yama")
_FOR_A_SNAPSHOT = ("permission", "userfaultfd", "watching RAM", "seccomp", "yama", "merging (KSM)")
"""Findings about a host that must be good for a snapshot of any QEMU of this user."""
_TRIED = ("watching RAM",)
"""Findings that show more about a snapshot than an examination of QEMU's process does."""

_NO_LOG = "QEMU does not tell other processes which pages its guest writes; the built-in guest does"


def doctor(
    folder: str = ".",
    *,
    qmp: str = "",
    pid: int | None = None,
    timeout: float | None = None,
    disks: Disks | None = None,
) -> DoctorReport:
    """Examine everything that a save needs: this host, a folder, and a running QEMU, whose guest is not stopped.

    Args:
        folder: where the file would be.
        qmp: a QMP socket, as for ``open_qemu``; if empty, only host and folder are examined.
        pid: as for ``open_qemu``.
        timeout: as for ``open_qemu``.
        disks: what to do about its disks, as for ``save``.

    Raises:
        RequestError: there is no such folder, or ``qmp`` is not a unix socket.
    """
    _check_folder(folder)
    disks = disks or Disks()
    host = Section(name="host", findings=tuple(examine_host()))
    examined = None
    if qmp:
        from parallel_fixedram.machines.qemu.examine import examine

        examined = examine(
            qmp_socket(qmp, os.path.exists), pid=pid, timeout=timeout, overlays=disks.mode is DisksMode.OVERLAY
        )
    place = examine_folder(folder, *((examined.ram, examined.data) if examined else (0, None)))
    sections = [host, Section(name="folder", findings=tuple(place)), *(examined.sections if examined else ())]
    capture, captures = (
        _of_this(host, functools.partial(open_qemu, qmp, pid=pid, timeout=timeout), disks) if qmp else _of_any(host)
    )
    sections.append(Section(name="save", findings=tuple(captures)))
    ok = not any(each.verdict is Verdict.REFUSED for section in sections for each in section.findings)
    return DoctorReport(folder=folder, qmp=qmp, ok=ok, capture=capture if ok else "", sections=tuple(sections))


def _check_folder(folder: str) -> None:
    try:
        os.close(os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
    except OSError as error:
        wrong = unopened(f"cannot open the folder {folder!r}", error)
        if not isinstance(wrong, HostError):  # a missing right is a finding
            raise wrong from error


def _of_any(host: Section) -> tuple[str, Sequence[Finding]]:
    """Which capture ``auto`` would choose for a QEMU of this user, and what on this host rules out the others."""
    bad, unread = _bad(host, _FOR_A_SNAPSHOT), _bad(host, _FOR_READING)
    capture, _ = way_to_capture(CaptureMode.AUTO, guest_waits=True, no_snapshot=bad.detail if bad else "")
    where = "of QEMUs of this user: under TCG, and under KVM where try-capture has passed"
    compare = found("compare", "of QEMUs of this user")
    if unread:
        compare = replace(unread, what="compare", detail=f"only if RAM is shared memory: {unread.detail}")
    return capture, [
        replace(bad, what="snapshot", detail=f"{bad.what}: {bad.detail}") if bad else found("snapshot", where),
        compare,
        Finding(what="rounds", verdict=Verdict.ABSENT, detail=_NO_LOG),
        found("stopped", "of any guest that may stand still while its pages are written"),
        found("auto", f"chooses {capture} for a running QEMU of this user"),
    ]


def _of_this(host: Section, qemu: Callable[[], QemuMachine], disks: Disks) -> tuple[str, Sequence[Finding]]:
    """Which capture ``auto`` would choose for this QEMU, found out as in a save."""
    try:
        with qemu() as machine:
            guest_waits = machine.is_running()
            snapshot = _snapshot(machine, host)
            its_disks = tried("disks", lambda: _disks(machine, disks, runs=guest_waits))
    except FixedRamError as error:
        return "", [missed("auto", error)]
    no_snapshot = "" if snapshot.verdict is Verdict.OK else snapshot.detail
    capture, why = way_to_capture(CaptureMode.AUTO, guest_waits=guest_waits, no_snapshot=no_snapshot)
    return capture, [
        snapshot,
        found("compare", "of this guest"),
        Finding(what="rounds", verdict=Verdict.ABSENT, detail=_NO_LOG),
        found("stopped", "of this guest, while its pages are written"),
        its_disks,
        found("auto", f"chooses {', '.join(why) or capture}" + ("" if guest_waits else ": the guest stands still")),
    ]


def _disks(machine: Machine, disks: Disks, *, runs: bool) -> str:
    with overlays_for(machine, disks, runs=runs):
        return "they are put on overlays" if disks.mode is DisksMode.OVERLAY else "they are left alone"


def _snapshot(machine: Machine, host: Section) -> Finding:
    """Whether a snapshot can be taken, by what a save checks, and by what otherwise shows only during a snapshot."""
    try:
        address_space(machine, CaptureMode.SNAPSHOT)
    except FixedRamError as error:
        return missed("snapshot", error, verdict=Verdict.ABSENT)
    if bad := _bad(host, _TRIED):
        return replace(bad, what="snapshot")
    _, reason = address_space(machine, CaptureMode.AUTO)
    if reason:
        return Finding(
            what="snapshot", verdict=Verdict.ABSENT, detail=reason, how="try-capture shows whether snapshots are right"
        )
    return found("snapshot", "of this guest")


def _bad(host: Section, names: Sequence[str]) -> Finding | None:
    """The first of these findings that is not OK."""
    known = {each.what: each for each in host.findings}
    return next((known[name] for name in names if known[name].verdict is not Verdict.OK), None)
