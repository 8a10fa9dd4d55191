"""The drives of a QEMU command line: options that open an image for writing, and how to put them on an overlay.

::

    -drive file=disk.img,format=raw,cache=none,id=d      -drive file=OVERLAY,format=qcow2,cache=none,id=d
    -blockdev driver=file,node-name=f,filename=a.img     -blockdev driver=file,node-name=f,filename=OVERLAY
    -blockdev driver=qcow2,node-name=q,file=f        ->  -blockdev driver=qcow2,node-name=q,file=f
    -blockdev driver=file,node-name=p,filename=b.img     -blockdev driver=qcow2,node-name=p,file.driver=file,...
    -hda c.img                                           -hda OVERLAY

Read-only and removable media (``readonly=on``, ``-cdrom``, ``-fda`` and the like) do not count as drives. Options are
parsed as QEMU does: system/vl.c (drive_add), blockdev.c (blockdev_init), block.c (path_has_protocol).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from parallel_fixedram.boot.command_line import Option, join_properties, options_of, split_properties
from parallel_fixedram.core.errors import RequestError

Pairs = Sequence[tuple[str, str]]
_Properties = Mapping[str, str]
_Changes = Mapping[str, str | None]
_Nodes = Mapping[str, tuple[Option, Pairs]]

_IMAGE_OPTIONS = ("hda", "hdb", "hdc", "hdd", "mtdblock", "pflash", "sd")
"""Options whose value is just a file name."""
_FORMATS = ("", "qcow2", "raw")
_PROTOCOLS = ("file", "host_device")
_FILTERS = ("copy-on-read", "throttle")
_OF_A_FILE = ("aio", "aio-max-batch", "drop-cache", "filename", "locking", "pr-manager", "x-check-cache-dropped")
"""Properties of a file node besides those of every node (qapi/block-core.json, BlockdevOptionsFile)."""
_ON = ("on", "yes", "true", "y")
_ONLY_OF_THE_IMAGE = ("data-file", "encrypt", "offset", "size")
"""Properties that say how to read an image's contents, which a qcow2 overlay cannot have."""
_OVERLAY = "\0"
"""Placeholder for the overlay's path; no argument can contain this character."""


class _Place(NamedTuple):
    """Where an option has its image."""

    path: str
    """The image's local path; empty if it is not local."""
    changes: _Changes
    """Changes to the option's properties that put an overlay there; None removes a property."""
    elsewhere: tuple[tuple[int, Pairs], ...] = ()
    """Changes to other options, as in ``DriveOption.replaced``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DriveOption:
    """One option, or two that belong together, by which QEMU opens an image for writing."""

    text: str
    """The option as the user gave it, for people."""
    path: str
    """The image's local path, relative to QEMU's working folder; empty if it is not local, as with nbd."""
    replaced: tuple[tuple[int, Pairs | None], ...]
    """Positions in the arguments, and what goes there: properties, or None for just the overlay's path."""
    refusal: str = ""
    """Why no overlay can take the image's place; empty if one can."""

    def on(self, overlay: str) -> dict[int, str]:
        """The arguments, by position, that put it on a qcow2 overlay."""
        return {
            position: overlay
            if pairs is None
            else join_properties([(name, overlay if value == _OVERLAY else value) for name, value in pairs])
            for position, pairs in self.replaced
        }


def drives_of(arguments: Sequence[str]) -> list[DriveOption]:
    """The drives of a command line, which begins with the program.

    Raises:
        RequestError: an option lacks its value, or is malformed JSON.
    """
    options = [*options_of(arguments)]
    blockdevs = [(option, _blockdev(option.value or "")) for option in options if option.name == "blockdev"]
    nodes = {dict(pairs).get("node-name", ""): (option, pairs) for option, pairs in blockdevs}
    files = [name for _, pairs in blockdevs if (name := _file_node(dict(pairs))) in nodes]
    behind = {value for _, pairs in blockdevs for name, value in pairs if name.split(".")[-1] == "backing"}
    drives = []
    for option in options:
        if option.name in _IMAGE_OPTIONS:
            drives.append(_named(str(option), option.value or "", option.position + 1))
        elif option.name == "drive":
            drives += _drive(option, split_properties(option.value or ""), {}, _set_later(option, options))
    for option, pairs in blockdevs:
        if dict(pairs).get("node-name") not in {*files, *behind}:
            twice = files.count(name := _file_node(dict(pairs))) > 1
            drives += _drive(option, pairs, nodes, f"node {name!r} has a second user" if twice else "")
    taken = {position for option in options for position in option.positions}
    left = [each for each in range(1, len(arguments)) if each not in taken]
    return drives + [_named(repr(arguments[each]), arguments[each], each) for each in left]


def _named(text: str, name: str, position: int) -> DriveOption:
    return DriveOption(text=text, path=_local(name), replaced=((position, None),))


def _drive(option: Option, pairs: Pairs, nodes: _Nodes, refusal: str) -> Iterator[DriveOption]:
    """What ``-drive`` or ``-blockdev`` opens for writing, if anything; ``refusal`` is a known reason against
    overlays."""
    has, prefix = dict(pairs), _behind_filters(pairs)
    legacy = option.name == "drive"
    driver = has.get(f"{prefix}driver") or (has.get("format", "") if legacy and not prefix else "")
    if driver in _FILTERS or _is_left_alone(has, prefix):  # a filter's image belongs to another option
        return
    place = _place(has, prefix, driver, legacy=legacy, nodes=nodes)
    if place is None:
        return
    if driver not in (*_FORMATS, *_PROTOCOLS):
        refusal = f"its format is {driver}"
    for name in has:
        if name.startswith(prefix) and name.removeprefix(prefix).split(".")[0] in _ONLY_OF_THE_IMAGE:
            refusal = f"an overlay cannot have its {name}="
    changes: dict[str, str | None] = {name: None for name in has if f"{name}.".startswith(f"{prefix}backing.")}
    changes |= {"driver": None, "format": "qcow2"} if legacy and not prefix else {f"{prefix}driver": "qcow2"}
    own = (option.position + 1, _changed(pairs, {**changes, **place.changes}))
    yield DriveOption(text=str(option), path=place.path, replaced=(own, *place.elsewhere), refusal=refusal)


def _place(has: _Properties, prefix: str, driver: str, *, legacy: bool, nodes: _Nodes) -> _Place | None:
    """Where the image is; None if there is none, as in an empty drive."""
    file = f"{prefix}file"
    is_file = has.get(f"{file}.driver", "file") in _PROTOCOLS
    if file in has and legacy and not prefix:
        if not has[file]:
            return None
        return _Place(_local(has[file]) if is_file else "", {file: _OVERLAY, f"{file}.driver": None})
    if file in has:
        option, pairs = nodes.get(has[file], (None, ()))
        inside = dict(pairs)
        if option is None or inside.get("driver") not in _PROTOCOLS:
            return _Place("", {})
        there = (option.position + 1, _changed(pairs, {"driver": "file", "filename": _OVERLAY}))
        return _Place(inside.get("filename", ""), {}, (there,))
    if f"{file}.filename" in has:
        path = has[f"{file}.filename"] if is_file else ""
        return _Place(path, {f"{file}.filename": _OVERLAY, f"{file}.driver": "file"})
    if driver in _PROTOCOLS:
        moved = [name for name in _OF_A_FILE if f"{prefix}{name}" in has]
        changes: dict[str, str | None] = {f"{prefix}{name}": None for name in moved}
        changes |= {f"{file}.{name}": has[f"{prefix}{name}"] for name in moved}
        changes |= {f"{file}.filename": _OVERLAY, f"{file}.driver": "file"}
        return _Place(has.get(f"{prefix}filename", ""), changes)
    return _Place("", {}) if driver or f"{file}.driver" in has else None


def _behind_filters(pairs: Pairs) -> str:
    """Prefix of the names of an image's properties: ``file.`` for each filter in front of it."""
    has, prefix = dict(pairs), ""
    while has.get(f"{prefix}driver") in _FILTERS and f"{prefix}file.driver" in has:
        prefix += "file."
    return prefix


def _is_left_alone(has: _Properties, prefix: str) -> bool:
    """Whether it is a read-only or removable medium."""
    read_only = [has.get(name) for name in ("readonly", "read-only", f"{prefix}read-only")]
    return any(each in _ON for each in read_only) or has.get("media") == "cdrom" or has.get("if") == "floppy"


def _file_node(has: _Properties) -> str:
    """Name of the node with a format's image; empty for a filter, or if there is no other node."""
    return "" if has.get("driver") in _FILTERS else has.get("file", "")


def _set_later(option: Option, options: Sequence[Option]) -> str:
    """Why a drive's option does not tell everything about it; empty if it does."""
    group = f"drive.{dict(split_properties(option.value or '')).get('id')}."
    return next(
        (f"{each} changes it" for each in options if each.name == "set" and (each.value or "").startswith(group)), ""
    )


def _changed(pairs: Pairs, changes: _Changes) -> Pairs:
    """Properties with changed values, in the same order; new ones come last."""
    there = dict(pairs)
    kept = [(name, changes.get(name, value)) for name, value in there.items()]
    new = [(name, value) for name, value in changes.items() if name not in there]
    return tuple((name, value) for name, value in [*kept, *new] if value is not None)


def _local(name: str) -> str:
    """The path in a file name as in ``-drive file=``; empty if it begins with a protocol such as ``nbd:``."""
    for protocol in _PROTOCOLS:
        if name.startswith(f"{protocol}:"):
            return name.removeprefix(f"{protocol}:")
    return "" if re.match(r"[^/]*:", name) else name


def _blockdev(text: str) -> Pairs:
    """Properties of a ``-blockdev`` in either form, as in the key=value form.

    Raises:
        RequestError: it is malformed.
    """
    if not text.startswith("{"):
        return split_properties(text, "driver")
    try:
        return [*_flat("", json.loads(text))]
    except (ValueError, RecursionError) as error:
        raise RequestError(f"a QEMU -blockdev is not JSON: {error}") from None


def _flat(name: str, value: Any) -> Iterator[tuple[str, str]]:
    match value:
        case dict() | list():
            for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
                yield from _flat(f"{name}.{key}" if name else str(key), inner)
        case bool():
            yield name, "on" if value else "off"
        case _:
            yield name, "" if value is None else str(value)
