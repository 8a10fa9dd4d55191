"""The process that a run is measured in: an order on stdin, an answer on stdout.

Run as ``python -m parallel_fixedram.experiments.child``. Expected errors are sent as answers, too.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any


def main() -> int:
    """Do as stdin says; returns the exit code."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # no linear algebra here, and its threads take time to start
    from parallel_fixedram.core.errors import FixedRamError
    from parallel_fixedram.experiments.fresh_process import RunOrder, raised_to_json

    order = RunOrder(**json.load(sys.stdin))
    try:
        _say(_measure(order))
    except FixedRamError as error:
        _say({"error": raised_to_json(error)})
        return error.exit_code
    return 0


def _measure(order: Any) -> dict[str, Any]:
    from dataclasses import asdict

    from parallel_fixedram.experiments.ways import naive, saving

    if order.way == "ours":
        return asdict(saving.measure(order, lambda pid: _say({"bystanders": [pid]})))
    return asdict(naive.measure(order))


def _say(value: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    raise SystemExit(main())
