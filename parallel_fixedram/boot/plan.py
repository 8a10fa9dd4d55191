"""What to start: command lines, and the stream that each QEMU loads."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

from parallel_fixedram.boot.command_line import CommandLine
from parallel_fixedram.boot.incoming import IncomingStream
from parallel_fixedram.boot.overlays import PlannedOverlays
from parallel_fixedram.core.errors import ContentsDiffer, HostError, RequestError
from parallel_fixedram.core.observer import Observer
from parallel_fixedram.core.reports.boot import GuestReport
from parallel_fixedram.core.units import format_exact_size
from parallel_fixedram.engine.workers.pool import readers
from parallel_fixedram.format.globalstate import GLOBALSTATE, run_state
from parallel_fixedram.format.mapped_ram import SavedBlock
from parallel_fixedram.host import linux
from parallel_fixedram.host.files.channel import FileChannel
from parallel_fixedram.image.clone_stream import clone_stream_of, require_device_state
from parallel_fixedram.image.image import Image
from parallel_fixedram.image.restore import check_head
from parallel_fixedram.image.verify import verify

MEMORY_ALIGNMENT = 8192
"""QEMU rounds memory sizes up to multiples of this, bytes (system/vl.c)."""
RUNS_ON = ("running", "suspended", "paused", "prelaunch", "postmigrate")
"""Run states of a saved guest in which it goes on if told to; in others its owner has to do something."""
INCOMING = ("-incoming", "defer")
"""Options that make a QEMU wait for its guest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Boot:
    """What to start: command lines, and what each QEMU loads.

    Attributes:
        commands: one for each guest, beginning with the program.
        source: the stream that QEMU loads.
        changes: what was replaced in the command line, a sentence each.
        descriptors: open files that QEMU needs; if there are none, anybody can run the commands.
        paused: whether the guests shall not run.
        notes: what the user has to know, a sentence each.
        ids: one for each clone with an identity of its own; otherwise empty.
        state: the guest's run state when it was saved; empty if the file does not tell.
        disks: overlays that have to be made before.
    """

    commands: Sequence[Sequence[str]]
    source: IncomingStream
    changes: Sequence[str] = ()
    descriptors: Collection[int] = frozenset()
    paused: bool = False
    notes: Sequence[str] = ()
    ids: Sequence[str] = ()
    state: str = ""
    disks: PlannedOverlays = field(default_factory=PlannedOverlays)

    @property
    def needs_cont(self) -> bool:
        """Whether a loaded guest has to be told to run; one that had powered off, for example, must not be."""
        return not self.paused and (not self.state or self.state in RUNS_ON)

    def identified(self, guests: tuple[GuestReport, ...]) -> tuple[GuestReport, ...]:
        """The same guests with their ids, if they have any."""
        return tuple(map(lambda guest, id_: replace(guest, id=id_), guests, self.ids)) if self.ids else guests


def check_against_digests(image: Image, observer: Observer) -> None:
    """Check everything in a file against its digests, and that the places of zero pages are zero.

    Raises:
        RequestError: the file has no digests.
        ContentsDiffer: something does not match; the message names the first.
    """
    if image.file.trailer is None:
        raise RequestError(f"{image.path!r} has no digests to check")
    found = verify(image, channels=readers(), observer=observer)
    if not found.ok:
        raise ContentsDiffer(f"{image.path!r}: {found.differences[0]}", hint="no guest was started")


def state_of(image: Image) -> str:
    """The run state of a file's guest when it was saved; empty if the file does not tell."""
    for section in image.file.devices:
        if section.name == GLOBALSTATE:
            return run_state(image.channel.bytes_at(section.body_offset, section.body_length))
    return ""


def paused_if(line: CommandLine, paused: bool) -> CommandLine:
    """The command line, with ``-S`` if the guest shall not run."""
    return CommandLine.parse([*line.arguments, "-S"]) if paused and not line.paused else line


def main_blocks(image: Image, line: CommandLine) -> list[SavedBlock]:
    """The blocks that are main memory of a guest that can be started from a file.

    Raises:
        RequestError: the file has no device state, lacks a block, or does not fit the command line.
        FormatError: it is not a complete mapped-ram file.
    """
    image.check_complete()
    require_device_state(image)
    image.refuse_absent()
    check_head(image, tables=False)
    names = line.main_blocks([(saved.block.idstr, saved.block.used_length) for saved in image.blocks])
    main = [image.block(idstr) for idstr in names]
    for saved in main:
        there = saved.block.used_length
        if (asked := line.length_of(saved.block.idstr)) and asked % MEMORY_ALIGNMENT == 0 and asked != there:
            raise RequestError(
                f"block {saved.block.idstr!r} has {format_exact_size(there)} in the file, "
                f"{format_exact_size(asked)} in this QEMU command line"
            )
    return main


def _has_clone_stream(image: Image, main: Sequence[SavedBlock]) -> bool:
    """Whether the file's own clone stream has exactly the blocks besides ``main``."""
    everything = {saved.block.idstr for saved in image.blocks}
    return image.clone_blocks() == everything - {saved.block.idstr for saved in main}


def clone_stream_in(image: Image, main: Sequence[SavedBlock]) -> IncomingStream:
    """The file's own clone stream.

    Raises:
        RequestError: it has none, or one for other main blocks.
    """
    if not image.file.trailer or not _has_clone_stream(image, main):
        raise RequestError(
            f"{image.path!r} has no clone stream for this command line",
            hint="without --print one is composed in memory"
            if image.file.trailer
            else "clone --add-clone-stream adds one; without --print one is composed in memory",
        )
    return IncomingStream(path=os.path.abspath(image.path), fd=image.channel.fd, offset=image.file.trailer.clone_offset)


def find_clone_stream(image: Image, main: Sequence[SavedBlock], stack: ExitStack) -> IncomingStream:
    """The file's own clone stream, or one composed in memory."""
    if image.file.trailer and _has_clone_stream(image, main):
        return clone_stream_in(image, main)
    clone_stream = clone_stream_of(image, [saved.block.idstr for saved in main])
    try:
        fd = os.memfd_create("clone-stream", os.MFD_CLOEXEC)
    except OSError as error:
        raise HostError.from_os("cannot get memory for the clone stream", error) from error
    stack.callback(linux.close, fd)
    clone_stream.write(image.channel, FileChannel(fd, "clone stream"), 0)
    return IncomingStream(path=f"/proc/self/fd/{fd}", fd=fd)
