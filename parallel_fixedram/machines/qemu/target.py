"""The architecture that a QEMU emulates, and whether its streams have the default grammar.

Source: QEMU qapi/machine-target.json (query-target), migration/migration-hmp-cmds.c (hmp_info_migrate).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from parallel_fixedram.core.errors import MachineError

if TYPE_CHECKING:
    from parallel_fixedram.machines.qemu.monitor import Monitor

_OFF = re.compile(r"^ *(send-configuration|send-section-footer): off\r?$", re.MULTILINE)
"""Settings of TYPE_MIGRATION that change a stream's grammar, both for saving and for loading."""


def read_target(monitor: Monitor) -> str:
    """The architecture that a QEMU emulates, such as ``x86_64``.

    Raises:
        MachineError: QEMU does not answer as expected.
    """
    answer = monitor.execute("query-target")
    if isinstance(answer, dict) and isinstance(arch := answer.get("arch"), str):
        return arch
    raise monitor.malformed("query-target", answer)


def check_settings(monitor: Monitor) -> None:
    """Refuse a QEMU that was told, by ``-global migration.…=off``, to leave out parts that our streams have.

    Raises:
        MachineError: it was; the message names the setting.
    """
    settings = monitor.hmp("info migrate")
    if "send-configuration" not in settings:  # QEMU 10.1 shows them only when asked for all
        settings = monitor.hmp("info migrate -a")
    if match := _OFF.search(settings):
        raise MachineError(
            f"QEMU runs with migration.{match[1]}=off, and neither writes nor loads streams in the default format",
            hint=f"leave out -global migration.{match[1]}=off",
        )
