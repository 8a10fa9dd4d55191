"""``clone``: start QEMUs whose RAM is mapped copy-on-write from the page arrays of a file."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

from parallel_fixedram.boot.clone import on_page_arrays
from parallel_fixedram.boot.command_line import CommandLine
from parallel_fixedram.boot.disks import with_disks
from parallel_fixedram.boot.hand_over import HandedOver, hand_over
from parallel_fixedram.boot.in_clones import InClones
from parallel_fixedram.boot.plan import (
    Boot,
    check_against_digests,
    clone_stream_in,
    find_clone_stream,
    main_blocks,
    paused_if,
)
from parallel_fixedram.boot.run_folder import new_path
from parallel_fixedram.core.boot_options import DiskChoice
from parallel_fixedram.core.clone_options import Identity
from parallel_fixedram.core.errors import RequestError
from parallel_fixedram.core.observer import SILENT, Observer
from parallel_fixedram.core.reports.boot import BootReport, GuestReport
from parallel_fixedram.engine.workers.pool import readers
from parallel_fixedram.image.add_trailer import add_trailer
from parallel_fixedram.image.image import Image, open_image
from parallel_fixedram.image.stale import punch_stale_pages, refuse_stale_pages

if TYPE_CHECKING:
    from parallel_fixedram.machines.qemu.monitor import Monitor

__all__ = ["Boot", "clone", "plan_clone"]


def clone(
    uri: str,
    command: Sequence[str],
    *,
    count: int = 1,
    identity: Identity = Identity.NEW,
    run_in_clone: str = "",
    punch: bool = False,
    add_clone_stream: bool = False,
    paused: bool = False,
    check_digests: bool = False,
    disks: DiskChoice | None = None,
    folder: str | None = None,
    observer: Observer = SILENT,
) -> BootReport:
    """Start guests whose RAM is mapped copy-on-write from the page arrays of a file, which stays as it is.

    Args:
        uri: a path, or ``file:PATH[,offset=SIZE]``. The file must not be changed while the guests live; nobody would
            notice. Another file may take its name.
        command: the QEMU that the guest was saved from; ``{n}`` in an argument is the clone's number, from 0.
        count: number of clones.
        identity: whether they get identities of their own, as far as that is possible from outside.
        run_in_clone: a shell command for each clone's guest agent, before they are handed over; ``{n}`` is its number.
        punch: whether to turn stale pages into holes first, in place.
        add_clone_stream: whether to add digests and a clone stream first, in place.
        paused: whether to keep the guests from running.
        check_digests: whether to check every page against its digest first.
        disks: which disks the guests get.
        folder: where each gets a folder for socket and log; must not exist. None for a new one.
        observer: told about progress.

    Raises:
        RequestError: the file has no device state, has stale pages, does not fit the command line or the disks, or was
            changed or replaced before the guests had loaded it; or there is no agent to run a command. No guest ran.
        ContentsDiffer: a page does not match its digest, or a disk image was written to since. No guest ran.
        FormatError: it is not a complete mapped-ram file.
        MachineError: a QEMU does not start or load the file, or the command fails in a guest; no guest is left.
        HostError: I/O failed, or there is not enough memory.
    """
    started = time.perf_counter()
    lines = _lines_for(command, count, paused=paused)
    inside = InClones.of(lines, run_in_clone, identity)
    if punch or add_clone_stream:
        _prepare(uri, lines[0], punch=punch, add_clone_stream=add_clone_stream, observer=observer)
    with open_image(uri) as image:
        done = _clone(
            image, lines, identity, inside, disks, check_digests=check_digests, folder=folder, observer=observer
        )
    return done.report("clone", image, "copy-on-write, mapped from the file", verified=check_digests, started=started)


def _clone(
    image: Image,
    lines: Sequence[CommandLine],
    identity: Identity,
    inside: InClones,
    disks: DiskChoice | None,
    *,
    check_digests: bool,
    folder: str | None,
    observer: Observer,
) -> HandedOver:
    """Start guests after checking the file: all of it against its digests, or else only the places of zero pages."""
    before, folder = image.channel.stat(), folder or new_path()
    main = main_blocks(image, lines[0])
    if check_digests:
        check_against_digests(image, observer)

    def look() -> None:
        if not check_digests:
            refuse_stale_pages(image, main, channels=readers(), observer=observer)

    def tell_them(guests: Sequence[GuestReport], monitors: Sequence[Monitor]) -> tuple[str, ...]:
        if inside.command:
            observer.phase("run in clones")
        return inside.carry_out(guests, monitors)

    with ExitStack() as stack:
        boot = on_page_arrays(image, lines, main, find_clone_stream(image, main, stack), identity, inside.remedy)
        return hand_over(
            image,
            with_disks(boot, image, disks, folder),
            folder=folder,
            observer=observer,
            meanwhile=look,
            before_they_run=lambda: _require_unchanged(image, before),
            when_they_run=tell_them,
        )


def plan_clone(
    uri: str,
    command: Sequence[str],
    *,
    count: int = 1,
    identity: Identity = Identity.NEW,
    paused: bool = False,
    disks: DiskChoice | None = None,
    folder: str | None = None,
) -> Boot:
    """What ``clone`` would start, for those who prefer to do it by hand; nothing is touched.

    Raises:
        RequestError, ContentsDiffer: as for ``clone``; or the file has no clone stream of its own.
        FormatError: it is not a complete mapped-ram file.
    """
    lines = _lines_for(command, count, paused=paused)
    remedy = InClones.of(lines, "", identity).remedy
    with open_image(uri) as image:
        main = main_blocks(image, lines[0])
        refuse_stale_pages(image, main, channels=readers())
        boot = on_page_arrays(image, lines, main, clone_stream_in(image, main), identity, remedy)
        return with_disks(boot, image, disks, folder or new_path())


def _lines_for(command: Sequence[str], count: int, *, paused: bool) -> list[CommandLine]:
    """The command line of each clone, in order."""
    if count < 1:
        raise RequestError(f"{count} clones, at least 1 is needed")
    line = paused_if(CommandLine.parse(command), paused)
    return [line.with_number(number) for number in range(count)]


def _require_unchanged(image: Image, before: os.stat_result) -> None:
    """Refuse a file that was changed since it was opened, or replaced, so that QEMU would have mapped another one."""
    with contextlib.suppress(OSError):
        after, named = image.channel.stat(), os.stat(image.path)
        if os.path.samestat(named, before) and (after.st_mtime_ns, after.st_size) == (
            before.st_mtime_ns,
            before.st_size,
        ):
            return
    raise RequestError(f"{image.path!r} was changed or replaced while its clones were being started")


def _prepare(uri: str, line: CommandLine, *, punch: bool, add_clone_stream: bool, observer: Observer) -> None:
    """Change a file so that it can be cloned."""
    with open_image(uri) as image:
        main = main_blocks(image, line)
        if punch:
            punch_stale_pages(image)
        if add_clone_stream:
            add_trailer(image, [saved.block.idstr for saved in main], channels=readers(), observer=observer)
