"""CommandLine: a QEMU command line as the user gave it, with its guest RAM taken from files.

We interpret only what concerns guest RAM: where options begin, memory backends, and which of these are main RAM.
Everything else stays literally as it is, and in its place::

    -machine q35,memory-backend=m                    -machine q35,memory-backend=m
    -object memory-backend-memfd,id=m,size=1G   ->   -object memory-backend-file,id=m,size=...,mem-path=FILE,offset=...
    -m 1G -append -v                                 -m 1G -append -v

RAM without a backend of its own, as with a plain ``-m 1G``, gets one, named like its block in the file. ``-readconfig``
files are not read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple, Self

from parallel_fixedram.core.errors import RequestError
from parallel_fixedram.core.units import parse_size

# The options of qemu-options.hx without HAS_ARG (QEMU 10.0, all targets); every other takes the next argument.
_WITHOUT_VALUE = frozenset(
    (
        *("S", "daemonize", "enable-kvm", "enable-sync-profile", "full-screen", "h", "help", "jitdump", "mem-prealloc"),
        *("no-fd-bootchk", "no-reboot", "no-shutdown", "no-user-config", "nodefaults", "nographic", "old-param"),
        *("only-migratable", "perfmap", "preconfig", "s", "semihosting", "snapshot", "usb", "version", "win2k-hack"),
        *("xen-attach", "xen-domid-restrict"),
    )
)
_REFUSED = {
    "incoming": "the guest is loaded from the file",
    "loadvm": "the guest is loaded from the file",
    "daemonize": "leave it out, the guest is detached anyway",
    "preconfig": "the machine has to be complete when QEMU has started",
}
_KEPT = frozenset({"host-nodes", "policy", "merge", "dump"})  # properties that do not concern where the bytes are
_CANONICAL = "x-use-canonical-path-for-ramblock-id"

_PROPERTY = re.compile(r"(?:([^=,]*)=)?((?:[^,]|,,)*),?")
NUMBER = "{n}"


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryFile:
    """A part of a file that becomes a block's RAM."""

    path: str
    offset: int
    """Bytes, a multiple of the host's page size."""
    size: int
    """Bytes, the block's length."""
    shared: bool
    """Whether the guest's writes go into the file; otherwise the guest is a copy-on-write clone and only reads it."""
    anonymous: bool = False
    """Whether the path is that of a descriptor, which means nothing to people."""
    name: str = ""
    """The path that the file will have later, if that is different."""

    def __str__(self) -> str:
        if self.anonymous:
            return "anonymous shared memory"
        return (
            f"the file {(self.name or self.path)!r} at {self.offset:#x}, {'shared' if self.shared else 'copy-on-write'}"
        )

    def properties(self) -> list[tuple[str, str]]:
        """Properties of a memory-backend-file for it (backends/hostmem-file.c)."""
        # a readonly file would be ROM for the guest; with rom=off it is a private, writable copy
        access = [("share", "on")] if self.shared else [("share", "off"), ("readonly", "on"), ("rom", "off")]
        return [("size", str(self.size)), ("mem-path", self.path), ("offset", str(self.offset)), *access]


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One option of a command line."""

    name: str
    """Without dashes."""
    value: str | None
    """The argument after it, or None for an option that takes none."""
    position: int
    """Index of the option in the arguments; the value's is one more."""

    def __str__(self) -> str:
        return f"-{self.name}" if self.value is None else f"-{self.name} {self.value!r}"

    @property
    def positions(self) -> range:
        """Indexes of all arguments that belong to it."""
        return range(self.position, self.position + (1 if self.value is None else 2))


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """One ``-object memory-backend-*``."""

    id: str
    kind: str
    """Such as ``memory-backend-ram``."""
    properties: tuple[tuple[str, str], ...]
    """All but id and type, in order, as in QEMU's key=value syntax; a list is a repeated name."""
    position: int
    """Index of ``-object`` in the arguments."""


class Rewritten(NamedTuple):
    """A command line whose RAM comes from files."""

    arguments: list[str]
    changes: list[str]
    """What differs from what the user gave, one line each, for people."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandLine:
    """A QEMU command line; ``parse`` makes it."""

    arguments: tuple[str, ...]
    """The program first."""
    options: tuple[Option, ...]
    backends: Mapping[str, Backend]
    """Memory backends by id, without those that are not RAM (memory-backend-epc)."""
    main: frozenset[str]
    """Ids of the backends that are the machine's RAM; empty if it is QEMU's own default backend."""

    @classmethod
    def parse(cls, arguments: Sequence[str]) -> Self:
        """Parse a command line, which begins with the program.

        Raises:
            RequestError: it is empty, an option lacks its value or is not allowed here, or a backend is malformed.
        """
        if not arguments:
            raise RequestError("the QEMU command line is empty, expected a program and its arguments")
        if any("\0" in argument for argument in arguments):
            raise RequestError("the QEMU command line contains a NUL character")
        options = tuple(options_of(arguments))
        for option in options:
            if option.name in _REFUSED:
                raise RequestError(f"QEMU's option -{option.name} is not allowed here: {_REFUSED[option.name]}")
        backends: dict[str, Backend] = {}
        for backend in _backends(options):
            if backend.id in backends:
                raise RequestError(f"two memory backends have the id {backend.id!r}")
            backends[backend.id] = backend
        return cls(arguments=tuple(arguments), options=options, backends=backends, main=frozenset(_main(options)))

    @property
    def paused(self) -> bool:
        """Whether the guest shall not run (``-S``)."""
        return any(option.name == "S" for option in self.options)

    def with_number(self, number: int) -> Self:
        """The command line with ``{n}`` replaced by a clone's number; other braces, as in JSON, stay.

        Raises:
            RequestError: as for ``parse``.
        """
        return self.parse([argument.replace(NUMBER, str(number)) for argument in self.arguments])

    def main_blocks(self, blocks: Sequence[tuple[str, int]]) -> list[str]:
        """Which blocks of a file are the RAM that this command line gives the machine, in the file's order.

        Args:
            blocks: idstr and used_length of every block.

        Raises:
            RequestError: the file lacks a block for this command line's RAM, so it was saved with another one.
        """
        owned = {idstr: backend.id for idstr, _ in blocks if (backend := self._backend(idstr))}
        others = [(length, idstr) for idstr, length in blocks if idstr not in owned]
        default = max((block for block in others if self._can_be_default(block[1])), default=None)
        complete = self.main <= set(owned.values()) if self.main else default is not None
        if not complete and others:
            raise self._unknown(max(others)[1])
        if not complete:
            raise RequestError(f"the file has no block for {self._described(self.main)} of this QEMU command line")
        return [idstr for idstr, _ in blocks if idstr in owned or (default and idstr == default[1])]

    def length_of(self, idstr: str) -> int | None:
        """Length of one of ``main_blocks`` according to the command line, bytes; None if that cannot be told."""
        backend = self._backend(idstr)
        if backend:
            text = dict(backend.properties).get("size", "")
        else:
            pairs = [split_properties(option.value or "", "size") for option in self.options if option.name == "m"]
            text = dict(chain.from_iterable(pairs)).get("size", "")
            text += "M" if text.isdecimal() else ""
        try:
            return parse_size(text) or None
        except RequestError:
            return None

    def with_memory(self, files: Mapping[str, MemoryFile]) -> Rewritten:
        """The command line with the RAM of some blocks taken from files.

        Args:
            files: by idstr, for some or all of ``main_blocks``.

        Raises:
            RequestError: a block is not RAM of this command line.
        """
        replaced: dict[int, str] = {}
        added: list[str] = []
        changes: list[str] = []
        for idstr, file in files.items():
            backend = self._backend(idstr)
            if backend:
                replaced[backend.position + 1] = _file_backend(backend.id, idstr, file, backend.properties)
                changes.append(f"{backend.kind} {backend.id!r} is now {file}{_without(backend, file)}")
            elif self._can_be_default(idstr) and not added:
                # several -machine or -M are merged, and the last one wins (keyval_parse_into(), util/keyval.c)
                machine = join_properties([("memory-backend", idstr)])
                added = ["-object", _file_backend(idstr, idstr, file, ()), "-machine", machine]
                changes.append(f"default RAM {idstr!r} is now {file}")
            else:
                raise self._unknown(idstr)
        # -mem-prealloc applies to every backend (system/vl.c), and would copy all of a clone's RAM; -mem-path applies
        # only to the default one, and is an error next to memory-backend=
        obsolete = {*(["mem-path"] if added else []), *(["mem-prealloc"] if files else [])}
        left_out = [option for option in self.options if option.name in obsolete]
        gone = {index for option in left_out for index in option.positions}
        kept = [replaced.get(index, text) for index, text in enumerate(self.arguments) if index not in gone]
        return Rewritten(kept + added, [*changes, *(f"{option} is left out" for option in left_out)])

    def _backend(self, idstr: str) -> Backend | None:
        """The backend of a block. The block is named after the backend's id or, with machines before 4.0, QOM path."""
        return self.backends.get(idstr.removeprefix("/objects/"))

    def _can_be_default(self, idstr: str) -> bool:
        """Whether it may be the RAM that QEMU makes for ``-m``: ``pc.ram``, ``mach-virt.ram``, ``ppc_spapr.ram``.

        The name of a device's memory begins with the device's path, so it contains a slash.
        """
        return not self.main and idstr.endswith(".ram") and "/" not in idstr

    def _unknown(self, idstr: str) -> RequestError:
        has = self._described(self.backends)
        return RequestError(
            f"block {idstr!r} of the file is not a memory backend of this QEMU command line, which has {has}",
            hint="use the command line that the guest was saved with; -readconfig files are not read",
        )

    def _described(self, ids: Iterable[str]) -> str:
        return ", ".join([*map(repr, sorted(ids)), *([] if self.main else ["QEMU's default RAM"])]) or "none"


def split_properties(text: str, implied: str = "") -> list[tuple[str, str]]:
    """Names and values in QEMU's ``[VALUE,]NAME=VALUE,...``, where ``,,`` stands for a comma (util/qemu-option.c).

    Args:
        text: an option's argument.
        implied: name for a first value without a name. Elsewhere a bare name means ``on``, one with ``no`` before, off.
    """
    pairs: list[tuple[str, str]] = []
    for match in _PROPERTY.finditer(text):
        name, value = match[1], match[2].replace(",,", ",")
        if name is not None:
            pairs.append((name, value))
        elif match.start() == 0:
            pairs.append((implied, value))
        elif match[0]:
            pairs.append((value.removeprefix("no"), "off" if value.startswith("no") else "on"))
    return pairs


def join_properties(pairs: Sequence[tuple[str, str]], first: str = "") -> str:
    """QEMU's ``[FIRST,]NAME=VALUE,...``; the inverse of ``split_properties``."""
    texts = [first] if first else []
    return ",".join([*texts, *(f"{name}={value.replace(',', ',,')}" for name, value in pairs)])


def options_of(arguments: Sequence[str]) -> Iterator[Option]:
    """Options with their values, as QEMU finds them (lookup_opt(), system/vl.c); all else are disk images."""
    position = 1
    while position < len(arguments):
        text = arguments[position]
        if not text.startswith("-"):
            position += 1
            continue
        name = text.removeprefix("-").removeprefix("-")
        if name in _WITHOUT_VALUE:
            yield Option(name=name, value=None, position=position)
            position += 1
            continue
        if position + 1 == len(arguments):
            raise RequestError(f"QEMU's option {text!r} has no value")
        yield Option(name=name, value=arguments[position + 1], position=position)
        position += 2


def _backends(options: Sequence[Option]) -> Iterator[Backend]:
    for option in options:
        if option.name != "object" or option.value is None:
            continue
        text = option.value
        pairs = _json_pairs(text) if text.startswith("{") else split_properties(text, "qom-type")
        kind = dict(pairs).get("qom-type", "")
        if not kind.startswith("memory-backend-") or kind == "memory-backend-epc":
            continue
        ids = [value for name, value in pairs if name == "id"]
        if not ids:
            raise RequestError(f"a {kind} of the QEMU command line has no id")
        properties = tuple((name, value) for name, value in pairs if name not in ("id", "qom-type"))
        yield Backend(id=ids[0], kind=kind, properties=properties, position=option.position)


def _json_pairs(text: str) -> list[tuple[str, str]]:
    """The properties in an object's JSON form, as in its key=value form."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"a QEMU -object is not JSON: {error}") from None
    return [
        (name, {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value))
        for name, values in found.items()
        for value in (values if isinstance(values, list) else [values])
    ]


def _main(options: Sequence[Option]) -> set[str]:
    """Ids of the backends that the machine or its NUMA nodes name."""
    machine: list[str] = []
    nodes: set[str] = set()
    for option in options:
        pairs = split_properties(option.value or "", "type")
        if option.name in ("machine", "M"):
            machine += [value for name, value in pairs if name == "memory-backend" and value]
        elif option.name == "numa":
            nodes |= {value for name, value in pairs if name == "memdev"}
    return {*machine[-1:], *nodes}


def _file_backend(id_: str, idstr: str, file: MemoryFile, properties: Sequence[tuple[str, str]]) -> str:
    # which of two names a block gets depends on the machine's version and the kind of backend (hw/core/machine.c)
    name = [(_CANONICAL, "off" if idstr == id_ else "on")]
    kept = [pair for pair in properties if pair[0] in _KEPT]
    return join_properties([("id", id_), *file.properties(), *name, *kept], "memory-backend-file")


def _without(backend: Backend, file: MemoryFile) -> str:
    """The end of a sentence about a backend: which properties it has lost."""
    still = file.properties()
    lost = [pair for pair in backend.properties if pair[0] not in _KEPT | {_CANONICAL, "size"} and pair not in still]
    return f", without {join_properties(lost)!r}" if lost else ""
