"""What one command finds out, kept for the next: small JSON files in the user's cache folder."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from typing import Any

logger = logging.getLogger(__name__)

_FOLDER = "parallel-fixedram"


def read(name: str) -> dict[str, Any]:
    """What was written under this name; empty if there is nothing, or nothing usable."""
    try:
        with open(os.path.join(_folder(), name), encoding="utf-8") as file:
            found = json.load(file)
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def write(name: str, value: dict[str, Any]) -> None:
    """Keep a JSON object under this name. A failure is no error: it will be found out again."""
    import tempfile  # slow, and most commands only read

    try:
        os.makedirs(_folder(), mode=0o700, exist_ok=True)
        fd, path = tempfile.mkstemp(prefix=f".{name}.", dir=_folder())
        try:
            with os.fdopen(fd, "w", encoding="utf-8") as file:
                json.dump(value, file)
            os.replace(path, os.path.join(_folder(), name))
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(path)
            raise
    except OSError as error:
        logger.debug("cannot keep %r: %s", name, error)


def _folder() -> str:
    """$XDG_CACHE_HOME/parallel-fixedram (XDG Base Directory Specification)."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    return os.path.join(home if os.path.isabs(home) else os.path.expanduser("~/.cache"), _FOLDER)
