"""Plan clones of a guest: QEMUs whose RAM is mapped copy-on-write from the page arrays of a file."""

from __future__ import annotations

import os
from collections.abc import Sequence

from parallel_fixedram.boot.clone_identity import Parent, distinct, twins
from parallel_fixedram.boot.command_line import CommandLine, MemoryFile
from parallel_fixedram.boot.incoming import IncomingStream
from parallel_fixedram.boot.plan import INCOMING, Boot, state_of
from parallel_fixedram.boot.taken import refuse_shared_sockets
from parallel_fixedram.core.clone_options import Identity
from parallel_fixedram.core.errors import RequestError
from parallel_fixedram.core.ramblock import TARGET_PAGE_SIZE
from parallel_fixedram.format.mapped_ram import SavedBlock
from parallel_fixedram.image.image import Image


def on_page_arrays(
    image: Image,
    lines: Sequence[CommandLine],
    main: Sequence[SavedBlock],
    source: IncomingStream,
    identity: Identity,
    remedy: str,
) -> Boot:
    """QEMUs that map main memory from the page arrays, and load everything else.

    Args:
        image: the open file.
        lines: command line of each clone, in order.
        main: the blocks that are main memory.
        source: the stream that they load.
        identity: whether they get identities of their own.
        remedy: what can be done about what they still share, as the end of a sentence.

    Raises:
        RequestError: the command line does not fit the file, or two QEMUs would listen on the same socket.
    """
    files = {}
    for saved in main:
        if saved.header.pages_offset % TARGET_PAGE_SIZE:
            raise RequestError(f"the pages of block {saved.block.idstr!r} do not start at a multiple of the page size")
        files[saved.block.idstr] = MemoryFile(
            path=os.path.abspath(image.path),
            offset=saved.header.pages_offset,
            size=saved.block.used_length,
            shared=False,
        )
    refuse_shared_sockets(lines)
    given = distinct(lines, Parent.of(image), remedy) if identity is Identity.NEW else twins(lines)
    rewritten = [each.with_memory(files) for each in given.lines]
    return Boot(
        commands=[[*each.arguments, *INCOMING] for each in rewritten],
        source=source,
        changes=[*rewritten[0].changes, *given.changes],
        paused=lines[0].paused,
        notes=given.notes,
        ids=given.ids,
        state=state_of(image),
    )
