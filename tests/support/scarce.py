"""What a process can have only so many of."""

from __future__ import annotations

import gc
import os
import resource
from collections.abc import Callable
from typing import Any


def with_descriptors(spare: int, action: Callable[[], Any]) -> Any:
    """Do it while this process, and those that it forks, can have so many descriptors more than they have."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    gc.collect()  # descriptors of garbage would become free meanwhile
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + spare, limits[1]))
    try:
        return action()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
