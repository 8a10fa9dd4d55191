"""From what JSON has (objects, arrays, texts and numbers) to values, by their types; ``dataclasses.asdict`` goes back.

Types are checked, and missing keys are refused. Unknown keys are ignored: a later version may have added them.
"""

from __future__ import annotations

from typing import Any, TypeVar

T = TypeVar("T")


def from_plain(kind: type[T], data: Any) -> T:
    """The value of that type that ``asdict`` made ``data`` of, perhaps by way of JSON.

    Raises:
        ValueError: it did not; says where in ``data``.
    """
    import msgspec  # by the few commands that read: it takes as long to import as a small file to save

    return msgspec.convert(data, kind, str_keys=True)
