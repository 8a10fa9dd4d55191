"""Values to what JSON has, and back: objects, arrays, texts and numbers.

Reading checks types and refuses what is missing. Keys that a value does not have are left out: new ones may have come.
"""

from __future__ import annotations

from typing import Any, TypeVar

T = TypeVar("T")


def to_plain(value: Any) -> Any:
    """A dataclass, or what holds some, as what ``json.dumps`` takes; keys of a mapping become texts."""
    import msgspec

    return msgspec.to_builtins(value, str_keys=True, enc_hook=_number)


def from_plain(kind: type[T], data: Any) -> T:
    """The value of that type which ``to_plain`` made ``data`` of, perhaps by way of JSON.

    Raises:
        ValueError: it did not; says where in ``data``.
    """
    import msgspec

    return msgspec.convert(data, kind, str_keys=True)


def _number(value: Any) -> Any:
    """A number of numpy's, which is one of Python's as well."""
    if isinstance(value, float):
        return float(value)
    raise NotImplementedError(f"{type(value).__name__} has no place in JSON")
