"""Files with a bit that is another one."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from parallel_fixedram.image.image import Image


def flip(file: str | Path, offset: int) -> None:
    """Change one bit of one byte; done twice, nothing has happened."""
    with open(file, "r+b") as opened:
        byte = os.pread(opened.fileno(), 1, offset)[0]
        os.pwrite(opened.fileno(), bytes([byte ^ 0x40]), offset)


def place(file: str, where: Callable[[Image], int]) -> int:
    """An offset that the file itself tells."""
    with Image(file) as image:
        return where(image)
