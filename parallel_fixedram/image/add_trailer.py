"""Add our trailer to a mapped-ram file by QEMU, in place: digests of everything, and a clone stream.

Nothing before the end of the stream changes, and QEMU loads the file as before. The footer is written last, when the
rest is on stable storage: without it there is no trailer.
"""

from __future__ import annotations

import os
from collections.abc import Collection

from parallel_fixedram.core.errors import HostError, RequestError
from parallel_fixedram.core.observer import SILENT, Observer
from parallel_fixedram.engine.pages.digest import DigestJob, write_digests, write_footer, write_trailer
from parallel_fixedram.engine.pages.ledger import shared_words
from parallel_fixedram.engine.workers.pool import WorkerPool
from parallel_fixedram.engine.workers.progress import run_job
from parallel_fixedram.format.libvirt_image import head_ranges
from parallel_fixedram.format.trailer import TrailerLayout
from parallel_fixedram.host import linux
from parallel_fixedram.host.files.channel import FileChannel, ReadBackChannel
from parallel_fixedram.host.processes import signals
from parallel_fixedram.image.clone_stream import clone_stream_of
from parallel_fixedram.image.image import Image
from parallel_fixedram.image.stale import refuse_stale_pages, reopen_writable


def add_trailer(image: Image, main: Collection[str], *, channels: int, observer: Observer = SILENT) -> None:
    """Add a trailer; the image has to be opened again to see it.

    Args:
        image: a file that has none.
        main: names of the blocks that are main memory.
        channels: number of workers.
        observer: told about progress.

    Raises:
        RequestError: the file has a trailer already, or cannot have one.
        HostError: I/O failed; the file is as it was.
    """
    _require_place(image)
    refuse_stale_pages(image, image.blocks, channels=channels)
    clone = clone_stream_of(image, main)
    trailer = TrailerLayout.plan(
        base=image.file.base,
        stream_end=image.file.stream_end,
        blocks=[saved.block for saved in image.blocks],
        clone_end=clone.end,
        head=head_ranges(image.file.base) if image.file.libvirt else (),
    )
    present = [image.bitmap(saved.block.idstr) for saved in image.blocks]
    digests = [shared_words(saved.block.pages) for saved in image.blocks]
    fd = reopen_writable(image)
    with linux.closing(fd):
        channel, resized = ReadBackChannel(FileChannel(fd, image.path)), False
        try:
            with signals.held():
                _resize(channel, trailer.file_length)
                resized = True
            job = DigestJob(image.blocks, present, digests, channel)
            with WorkerPool([job], channels) as pool:
                size = image.file.page_size
                run_job(pool, 0, present, phase="digest", page_size=size, observer=observer)
            write_digests(channel, trailer.tables, digests, present)
            clone.write(channel, channel, trailer.clone_offset)
            write_trailer(channel, trailer, image.blocks)
            _seal(channel, trailer)
        except BaseException:
            with signals.held():
                if resized:
                    _resize(channel, image.file.stream_end)  # first here, so that overwritten padding is zero again
                    _resize(channel, image.file.size)
            raise


def _seal(channel: FileChannel, trailer: TrailerLayout) -> None:
    """Make the trailer one: even after a power cut no footer is there without the rest."""
    channel.sync()
    write_footer(channel, trailer)
    channel.sync()


def _require_place(image: Image) -> None:
    """Refuse a file that has a trailer already, or no place for one."""
    if image.file.trailer is not None:
        raise RequestError(f"{image.path!r} already has a trailer")
    if len(image.blocks) < len(image.file.blocks):
        raise RequestError(f"{image.path!r} does not contain all of its RAMBlocks")
    for saved in image.blocks:
        if max(saved.bitmap_end, saved.pages_end) > image.file.stream_end:
            raise RequestError(f"{image.path!r} has block {saved.block.idstr!r} after the end of its stream")


def _resize(channel: FileChannel, size: int) -> None:
    try:
        os.ftruncate(channel.fd, size)
    except OSError as error:
        raise HostError.from_os(f"cannot size {channel.name!r} to {size} bytes", error) from error
