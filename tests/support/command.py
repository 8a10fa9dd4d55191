"""The command, as a user runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run ``parallel-fixedram ARGUMENTS`` to its end."""
    command = [sys.executable, "-m", "parallel_fixedram", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def report(*arguments: object, code: int = 0) -> dict[str, Any]:
    """Run a verb with ``--json`` and hold it to its exit code; returns the object it prints."""
    done = run(*arguments, "--json")
    assert done.returncode == code, done.stderr or done.stdout
    return dict(json.loads(done.stdout))
