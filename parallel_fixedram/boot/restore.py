"""Plan the restore of a guest: a QEMU that loads the file by itself, or one on shared memory that we fill."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence

from parallel_fixedram.boot.command_line import CommandLine, MemoryFile
from parallel_fixedram.boot.incoming import IncomingStream
from parallel_fixedram.boot.plan import INCOMING, Boot, state_of
from parallel_fixedram.core.errors import RequestError
from parallel_fixedram.format.mapped_ram import SavedBlock
from parallel_fixedram.host.files.page_cache import takes_direct_io
from parallel_fixedram.image.cold import is_cold
from parallel_fixedram.image.image import Image


def loaded_by_qemu(image: Image, line: CommandLine, channels: int) -> Boot:
    """QEMU loads the whole stream, with direct I/O if it would have to wait for the device anyway."""
    source = IncomingStream(
        path=os.path.abspath(image.path),
        fd=image.channel.fd,
        offset=image.file.base,
        channels=channels,
        direct_io=channels > 1 and takes_direct_io(image.path) and is_cold(image, image.blocks),
    )
    return Boot(commands=[[*line.arguments, *INCOMING]], source=source, paused=line.paused, state=state_of(image))


def on_memory(
    line: CommandLine,
    paths: Mapping[str, str],
    main: Sequence[SavedBlock],
    source: IncomingStream,
    anonymous: Collection[str] = (),
    descriptors: Collection[int] = (),
    *,
    names: Mapping[str, str] | None = None,
) -> Boot:
    """QEMU on shared memory, whose final paths are in ``names``; it loads the rest from the file."""
    lengths = {saved.block.idstr: saved.block.used_length for saved in main}
    rewritten = line.with_memory(
        {
            idstr: MemoryFile(
                path=path,
                offset=0,
                size=lengths[idstr],
                shared=True,
                anonymous=idstr in anonymous,
                name=os.path.abspath(name) if (name := (names or {}).get(idstr)) else "",
            )
            for idstr, path in known_blocks(paths, lengths).items()
        }
    )
    return Boot(
        commands=[[*rewritten.arguments, *INCOMING]],
        source=source,
        changes=rewritten.changes,
        descriptors=descriptors,
        paused=line.paused,
    )


def known_blocks(paths: Mapping[str, str], main: Collection[str]) -> Mapping[str, str]:
    """``paths``, if it names only main blocks.

    Raises:
        RequestError: a block is not main memory.
    """
    for idstr in paths:
        if idstr not in main:
            names = ", ".join(map(repr, main))
            raise RequestError(f"block {idstr!r} is not main memory of this guest, which has {names}")
    return paths
