"""The ``-device`` options of a QEMU command line, in either form: ``DRIVER,NAME=VALUE,...`` or JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from parallel_fixedram.boot.command_line import CommandLine, join_properties, split_properties
from parallel_fixedram.core.errors import RequestError


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceOption:
    """One ``-device``."""

    driver: str
    properties: Mapping[str, Any]
    """All but the driver; strings, or in the JSON form any type."""
    is_json: bool
    position: int
    """Index of the option's value in the arguments."""

    def with_property(self, name: str, value: str) -> str:
        """The option's value with a property set to ``value``."""
        properties = {**self.properties, name: value}
        if self.is_json:
            return json.dumps({"driver": self.driver, **properties})
        return join_properties(list(properties.items()), self.driver.replace(",", ",,"))


def devices(line: CommandLine) -> Iterator[DeviceOption]:
    """All devices of the command line itself, in order; ``-readconfig`` files are not read.

    Raises:
        RequestError: one that looks like JSON is not.
    """
    for option in line.options:
        if option.name != "device" or option.value is None:
            continue
        is_json = option.value.startswith("{")
        properties = _from_json(option.value) if is_json else dict(split_properties(option.value, "driver"))
        driver = str(properties.pop("driver", ""))
        yield DeviceOption(driver=driver, properties=properties, is_json=is_json, position=option.position + 1)


def _from_json(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"a QEMU -device is not JSON: {error}") from None
    return dict(found)
