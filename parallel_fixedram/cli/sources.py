"""Options that say what is to be saved or compared, and the machine that they name."""

from __future__ import annotations

import argparse
import math
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from parallel_fixedram.cli import common
from parallel_fixedram.core.errors import RequestError
from parallel_fixedram.core.libvirt_uri import SYSTEM, local_uri
from parallel_fixedram.core.observer import SILENT
from parallel_fixedram.core.qmp_address import qmp_socket
from parallel_fixedram.core.units import parse_size

if TYPE_CHECKING:
    from collections.abc import Callable

    from parallel_fixedram.core.observer import Observer
    from parallel_fixedram.core.protocols import Machine
    from parallel_fixedram.verbs.open import RamFile

_RAM_OPTION = re.compile(r",(offset|size)=([^,]*)$")


def add_qmp_options(parser: Any) -> None:
    """``--qmp SOCKET`` and ``--pid``."""
    parser.add_argument(
        "--qmp",
        metavar="SOCKET",
        help="a running QEMU, by a QMP socket that nobody else is using: PATH, or unix:PATH, or the whole value of "
        "QEMU's own option -qmp; it must be a unix socket",
    )
    parser.add_argument(
        "--pid", type=int, metavar="PID", help="process id of that QEMU, if it cannot be found automatically"
    )
    parser.add_argument(
        "--qmp-timeout",
        type=common.number("a number of seconds", lambda value: 0 < value < math.inf),
        metavar="S",
        help="seconds to wait for an answer of QEMU (default 30)",
    )


def add_ram_option(parser: Any, purpose: str) -> None:
    """``--ram IDSTR=PATH[,offset=N][,size=N]``, repeatable."""
    parser.add_argument(
        "--ram",
        action="append",
        default=[],
        type=_ram_file,
        metavar="IDSTR=PATH[,offset=N][,size=N]",
        help=f"{purpose}; may be repeated",
    )


@dataclass(frozen=True, slots=True)
class RamOption:
    """``--ram`` as written; becomes a RamFile once numpy may be imported."""

    idstr: str
    path: str
    offset: int
    length: int | None

    def ram_file(self) -> RamFile:
        """The value that ``open_ram`` takes."""
        from parallel_fixedram.verbs.open import RamFile

        return RamFile(idstr=self.idstr, path=self.path, offset=self.offset, length=self.length)


def qmp_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """The options of ``add_qmp_options`` as keyword arguments of ``open_qemu``.

    Raises:
        RequestError: they are given without ``--qmp``, or that is not a unix socket.
    """
    if not args.qmp and (args.pid is not None or args.qmp_timeout is not None):
        raise RequestError("--pid and --qmp-timeout are for --qmp")
    if args.qmp:
        qmp_socket(args.qmp, os.path.exists)  # before anything else is done
    return {"pid": args.pid, "timeout": args.qmp_timeout}


_SOURCES = ("--guest SPEC", "--qmp SOCKET", "--libvirt DOMAIN", "--ram IDSTR=PATH ...")
SOURCE_USAGE = "\n       ".join(f"%(prog)s FILE {source} [options]" for source in _SOURCES)


def add_libvirt_options(parser: Any) -> None:
    """``--libvirt DOMAIN`` and ``--connect URI``."""
    parser.add_argument("--libvirt", metavar="DOMAIN", help="a running domain of libvirt, by its name or UUID")
    parser.add_argument(
        "--connect", metavar="URI", help=f"the libvirt on this host that has it (default {SYSTEM}), as for virsh"
    )


def libvirt_uri(args: argparse.Namespace) -> str:
    """What ``--connect`` says, or the default.

    Raises:
        RequestError: it is given without ``--libvirt``, or leads elsewhere.
    """
    if args.connect is not None and not args.libvirt:
        raise RequestError("--connect is for --libvirt")
    return local_uri(args.connect or SYSTEM)


def add_source_options(parser: Any) -> None:
    """What is to be saved: exactly one of four."""
    group = parser.add_argument_group("source", "exactly one of --guest, --qmp, --libvirt and --ram")
    group.add_argument(
        "--guest",
        metavar="SPEC",
        help="the built-in guest: zero, dense, random, hot, sweep or text, followed by any of these, with commas: "
        "size=SIZE, seed=N, fraction=SHARE (of its RAM that it writes), rate=SIZE (that it writes a second while it "
        "runs) and steps=N (after which it idles)",
    )
    add_qmp_options(group)
    add_libvirt_options(group)
    add_ram_option(group, "shared memory of a guest, which must be stopped")


def source(
    args: argparse.Namespace, *, running: bool = False, stop: bool = False, progress: Observer = SILENT
) -> Callable[[], Machine]:
    """What opens the machine that the options of ``add_source_options`` name.

    Args:
        args: the options.
        running: whether a built-in guest shall run.
        stop: whether a domain shall be ended once it is saved.
        progress: hears how a built-in guest is filled.

    Raises:
        RequestError: none, or more than one.
    """
    from parallel_fixedram.verbs.open import open_guest, open_libvirt, open_qemu, open_ram

    if sum(map(bool, (args.guest, args.qmp, args.libvirt, args.ram))) != 1:
        raise RequestError(
            "exactly one source is needed: --guest SPEC, --qmp SOCKET, --libvirt DOMAIN or --ram IDSTR=PATH"
        )
    qmp, uri = qmp_arguments(args), libvirt_uri(args)

    def machine() -> Machine:
        if args.guest:
            return open_guest(args.guest, running=running, observer=progress)
        if args.qmp:
            return open_qemu(args.qmp, **qmp)
        if args.libvirt:
            return open_libvirt(args.libvirt, uri=uri, stop=stop)
        return open_ram([option.ram_file() for option in args.ram])

    return machine


def _ram_file(text: str) -> RamOption:
    idstr, equals, path = text.partition("=")
    if not equals or not idstr:
        raise argparse.ArgumentTypeError(f"{text!r}: expected IDSTR=PATH[,offset=N][,size=N]")
    numbers: dict[str, int] = {}
    while match := _RAM_OPTION.search(path):
        if match[1] in numbers:
            raise argparse.ArgumentTypeError(f"{text!r}: {match[1]} is given twice")
        try:
            numbers[match[1]] = parse_size(match[2])
        except RequestError as error:
            raise argparse.ArgumentTypeError(f"{text!r}: {error.message}") from error
        path = path[: match.start()]
    if not path:
        raise argparse.ArgumentTypeError(f"{text!r}: the path is empty")
    if path == "-":
        raise argparse.ArgumentTypeError(f"{text!r}: '-' is not a file; for a file of that name write ./-")
    return RamOption(idstr, path, numbers.get("offset", 0), numbers.get("size"))
