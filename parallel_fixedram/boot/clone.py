"""What is started to clone a guest: QEMUs whose RAM is mapped from the page arrays of a file, copy-on-write."""

from __future__ import annotations

import os
from collections.abc import Sequence

from parallel_fixedram.boot.command_line import CommandLine, MemoryFile
from parallel_fixedram.boot.incoming import Source
from parallel_fixedram.boot.plan import INCOMING, Boot, state_of
from parallel_fixedram.boot.taken import refuse_shared_sockets
from parallel_fixedram.core.errors import RequestError
from parallel_fixedram.core.ramblock import TARGET_PAGE_SIZE
from parallel_fixedram.format.mapped_ram import SavedBlock
from parallel_fixedram.image.image import Image


def on_page_arrays(
    image: Image,
    line: CommandLine,
    main: Sequence[SavedBlock],
    count: int,
    source: Source,
) -> Boot:
    """QEMUs on the page arrays; of the file they load the rest."""
    files = {}
    for saved in main:
        if saved.header.pages_offset % TARGET_PAGE_SIZE:
            raise RequestError(f"the pages of block {saved.block.idstr!r} do not start at a multiple of a page")
        files[saved.block.idstr] = MemoryFile(
            path=os.path.abspath(image.path),
            offset=saved.header.pages_offset,
            size=saved.block.used_length,
            shared=False,
        )
    lines = [line.with_number(number) for number in range(count)]
    refuse_shared_sockets(lines)
    rewritten = [each.with_memory(files) for each in lines]
    return Boot(
        commands=[[*each.arguments, *INCOMING] for each in rewritten],
        source=source,
        changes=rewritten[0].changes,
        paused=line.paused,
        state=state_of(image),
    )
