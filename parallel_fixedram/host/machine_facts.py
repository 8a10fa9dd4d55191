"""Facts about the host for measurements: more than a save needs to know, and slower to find out."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import psutil

from parallel_fixedram.host.facts import host_facts, memory_bytes

T = TypeVar("T")

_DIRTY_LIMITS = (
    "dirty_ratio",
    "dirty_background_ratio",
    "dirty_bytes",
    "dirty_background_bytes",
    "dirty_expire_centisecs",
)
"""Files in /proc/sys/vm: when writers to the page cache have to wait, and when it is written back."""


def machine_facts(path: str) -> dict[str, Any]:
    """All of ``host_facts``, and what else explains a measurement: CPU, disk, swap, dirty limits, load.

    Returns:
        A JSON object, as in ``host_facts``.
    """
    import psutil  # slow to import, and a save asks for host_facts only

    place = os.path.realpath(path)
    return host_facts(path) | {
        "cpu_model": _or_none(_cpu_model),
        "cpu_mhz": _or_none(lambda: psutil.cpu_freq().max or psutil.cpu_freq().current),
        "physical_cpus": _or_none(lambda: psutil.cpu_count(logical=False)),
        "memory_available": memory_bytes("MemAvailable"),
        "swap": _or_none(lambda: psutil.swap_memory().total),
        "swap_used": _or_none(lambda: psutil.swap_memory().used),
        "load_average": _or_none(lambda: list(psutil.getloadavg())),
        "dirty_limits": {name: _or_none(partial(_dirty_limit, name)) for name in _DIRTY_LIMITS},
        "disk": _or_none(lambda: _disk(place)),
    }


def _cpu_model() -> str | None:
    with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        return next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), None)


def _dirty_limit(name: str) -> int:
    with open(f"/proc/sys/vm/{name}", encoding="ascii") as file:
        return int(file.read())


def _disk(path: str) -> dict[str, Any]:
    """The block device that ``path`` is on; nulls if there is none, as for shared memory."""
    status = os.stat(path)
    folder = os.path.realpath(f"/sys/dev/block/{os.major(status.st_dev)}:{os.minor(status.st_dev)}")
    if os.path.exists(os.path.join(folder, "partition")):
        folder = os.path.dirname(folder)
    rotational = _read(os.path.join(folder, "queue", "rotational"))
    sectors = _read(os.path.join(folder, "size"))
    return {
        "device": os.path.basename(folder) if sectors is not None else None,
        "model": _read(os.path.join(folder, "device", "model")),
        "rotational": None if rotational is None else rotational == "1",
        "size": None if sectors is None else int(sectors) * 512,
        "free": psutil.disk_usage(path).free,
        "scheduler": _read(os.path.join(folder, "queue", "scheduler")),
    }


def _read(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return None


def _or_none(fact: Callable[[], T]) -> T | None:
    """The fact, or None: a measurement must not fail because the system does not tell."""
    try:
        return fact()
    except (OSError, LookupError, ValueError, RuntimeError, AttributeError, psutil.Error):
        return None
