"""What several verbs share: options, and lines of a report."""

from __future__ import annotations

import argparse
import math
import os
import re
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from parallel_fixedram.cli.help_text import HelpFormatter
from parallel_fixedram.core.errors import RequestError
from parallel_fixedram.core.observer import SILENT
from parallel_fixedram.core.profiles import Profile
from parallel_fixedram.core.qmp_address import qmp_socket
from parallel_fixedram.core.units import format_count, parse_size

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from parallel_fixedram.core.observer import Observer
    from parallel_fixedram.core.protocols import Machine
    from parallel_fixedram.core.reports.choice import ChoiceReport
    from parallel_fixedram.core.save_options import Capturing, Gate, Writing
    from parallel_fixedram.verbs.open import RamFile

MAX_ROUNDS = 16
"""Of ``core.save_options``, which is not imported for ``--help``."""

_RAM_OPTION = re.compile(r",(offset|size)=([^,]*)$")

Subparsers = argparse._SubParsersAction  # argparse has no public name for what add_subparsers() returns


def add_verb(subparsers: Subparsers[Any], name: str, *, summary: str, about: str, examples: str) -> Any:
    """A parser for a verb, with examples that work; gets ``add_manner_options`` when it has its own."""
    return subparsers.add_parser(
        name,
        help=summary,
        description=about,
        epilog=f"examples:\n{examples}",
        formatter_class=HelpFormatter,
    )


def add_manner_options(parser: Any, *, json: bool = False, progress: bool = False) -> None:
    """How the command talks; ``--quiet`` and ``--debug`` may stand before a verb and behind it."""
    group = parser.add_argument_group("output")
    if json:
        group.add_argument("--json", action="store_true", help="one JSON object instead of text, also for an error")
    if progress:
        group.add_argument(
            "--progress",
            choices=("auto", "bar", "json", "none"),
            default="auto",
            help="how to show on stderr how far it is: by a bar, by one JSON object an event and line, or not at all "
            "(default auto: a bar on a terminal, without --quiet)",
        )
    group.add_argument(
        "-q", "--quiet", action="store_true", default=argparse.SUPPRESS, help="say nothing but errors (and --json)"
    )
    group.add_argument(
        "--debug", action="store_true", default=argparse.SUPPRESS, help="show tracebacks and debug messages"
    )


def parse_change(text: str) -> tuple[str, bool]:
    """A capability's name and whether it is to be on, from ``NAME``, ``NAME=on`` or ``NAME=off``.

    Raises:
        argparse.ArgumentTypeError: anything else.
    """
    name, equals, value = text.partition("=")
    if not name or (equals and value not in ("on", "off")):
        raise argparse.ArgumentTypeError(f"{text!r}: expected NAME, NAME=on or NAME=off")
    return name, value != "off"


def add_rule_options(parser: Any) -> None:
    """Whose rules the capability gate follows."""
    parser.add_argument(
        "--profile",
        choices=[str(profile) for profile in Profile],
        default=str(Profile.FIXED_RAM),
        help="whose rules say what goes together: QEMU 8.2 with the fixed-ram patch (default), QEMU 10.0 or QEMU 11.1",
    )
    parser.add_argument(
        "--experimental-multifd",
        action="store_true",
        help="allow fixed-ram with multifd, more than one channel; lifts no other rule",
    )


def auto_or_number(text: str) -> int | None:
    """A whole number, or None for ``auto``.

    Raises:
        argparse.ArgumentTypeError: anything else.
    """
    try:
        return None if text == "auto" else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number or auto") from None


def add_writing_options(parser: Any) -> None:
    """How to write: what is not given is chosen."""
    group = parser.add_argument_group("how to write", "what is not given follows from what writes cost there")
    group.add_argument(
        "--direct-io",
        choices=("auto", "on", "off"),
        default="auto",
        help="whether to bypass the page cache (default auto)",
    )
    group.add_argument(
        "--gap-pages",
        type=auto_or_number,
        metavar="N",
        help="bridge gaps of up to N unchanged pages, where one write is cheaper than two (default auto)",
    )
    group.add_argument(
        "--shard-pages",
        type=auto_or_number,
        metavar="N",
        help="pages that a worker is handed at a time (default auto)",
    )
    group.add_argument(
        "--calibrate", action="store_true", help="measure what writes cost there, even if it is known: about a second"
    )


def writing(args: argparse.Namespace) -> Writing:
    """What the options of ``add_writing_options`` ask for.

    Raises:
        RequestError: a number out of its range.
    """
    from parallel_fixedram.core.save_options import DirectIO, Writing

    return Writing(
        direct_io=DirectIO(args.direct_io),
        gap_pages=args.gap_pages,
        shard_pages=args.shard_pages,
        calibrate=args.calibrate,
    )


def add_capture_options(parser: Any) -> None:
    """How the file comes to hold one instant of a guest that runs."""
    group = parser.add_argument_group(
        "a guest that runs meanwhile", "a built-in guest does so where --capture names one of the three ways"
    )
    group.add_argument(
        "--capture",
        choices=("auto", "compare", "rounds", "stopped"),
        default="auto",
        help="how the file comes to hold one instant. compare: all pages while the guest runs, then, while it stands "
        "still, those whose hash is another one; rounds: what a dirty log names, again and again, the last time while "
        "it stands still (built-in guest only); stopped: all pages while it stands still; "
        "auto (default): the one of them that makes the shortest pause, without a dirty log",
    )
    group.add_argument(
        "--max-rounds", type=int, metavar="N", help=f"most rounds of --capture rounds (default {MAX_ROUNDS})"
    )


def capturing(args: argparse.Namespace) -> Capturing:
    """What the options of ``add_capture_options`` ask for.

    Raises:
        RequestError: they do not go together, or a number is out of its range.
    """
    from parallel_fixedram.core.save_options import CaptureMode, Capturing

    mode = CaptureMode(args.capture)
    if args.max_rounds is None:
        return Capturing(mode=mode)
    if mode is not CaptureMode.ROUNDS:
        raise RequestError("--max-rounds is for --capture rounds")
    return Capturing(mode=mode, max_rounds=args.max_rounds)


def choice_lines(choice: ChoiceReport) -> list[str]:
    """A choice and its reasons for people."""
    how = "direct I/O" if choice.direct_io else "page cache"
    how += {"compare": " while the guest runs, then what changed", "rounds": " in rounds"}.get(choice.capture, "")
    head = f"{format_count(choice.channels, 'channel')}, {how}, shards of {format_count(choice.shard_pages, 'page')}"
    return [head, *choice.why]


def add_gate_options(parser: Any, *, auto: bool = False) -> None:
    """``--channels`` and what the capability gate needs to know.

    Args:
        parser: gets the options.
        auto: whether the number of channels may be left open.
    """
    group = parser.add_argument_group("channels and capabilities")
    group.add_argument(
        "--channels",
        type=auto_or_number if auto else int,
        default=1,
        metavar="N|auto" if auto else "N",
        help="worker processes (default 1); more than one is multifd, which needs --experimental-multifd"
        + ("; auto: as many as pay" if auto else ""),
    )
    group.add_argument(
        "--cap",
        action="append",
        default=[],
        type=parse_change,
        metavar="NAME[=on|off]",
        help="a further migration capability that is to be on or off (caps lists them); may be repeated",
    )
    add_rule_options(group)


def gate(args: argparse.Namespace) -> Gate:
    """What the options of ``add_gate_options`` ask for."""
    from parallel_fixedram.core.save_options import Gate

    return Gate(
        channels=args.channels,
        experimental_multifd=args.experimental_multifd,
        capabilities=dict(args.cap),
        profile=Profile(args.profile),
    )


def add_qmp_options(parser: Any) -> None:
    """``--qmp SOCKET`` and ``--pid``."""
    parser.add_argument(
        "--qmp",
        metavar="SOCKET",
        help="a running QEMU, by a QMP socket that nobody else is using: PATH, or unix:PATH, or all that QEMU's own "
        "option -qmp has; it has to be a unix socket",
    )
    parser.add_argument(
        "--pid", type=int, metavar="PID", help="process id of the QEMU behind --qmp, where it cannot be found by itself"
    )
    parser.add_argument(
        "--qmp-timeout", type=_seconds, metavar="S", help="seconds that QEMU may take for an answer (default 30)"
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


SOURCE_USAGE = "\n       ".join(
    f"%(prog)s FILE {source} [options]" for source in ("--guest SPEC", "--qmp SOCKET", "--ram IDSTR=PATH ...")
)


def add_source_options(parser: Any) -> None:
    """What is to be saved: exactly one of three."""
    group = parser.add_argument_group("source", "exactly one of --guest, --qmp and --ram")
    group.add_argument(
        "--guest",
        metavar="SPEC",
        help="the built-in guest: zero, dense, random, hot, sweep or text, and behind it, with commas, any of "
        "size=SIZE, seed=N, fraction=SHARE (of RAM that it writes), rate=SIZE (that it writes a second when it runs) "
        "and steps=N (after which it idles)",
    )
    add_qmp_options(group)
    add_ram_option(group, "shared memory of a guest; whoever runs on it has to be stopped")


def source(args: argparse.Namespace, *, running: bool = False, progress: Observer = SILENT) -> Callable[[], Machine]:
    """What opens the machine that the options of ``add_source_options`` name.

    Args:
        args: the options.
        running: whether a built-in guest shall run.
        progress: hears how a built-in guest is filled.

    Raises:
        RequestError: none, or more than one.
    """
    from parallel_fixedram.verbs.open import open_guest, open_qemu, open_ram

    if sum(map(bool, (args.guest, args.qmp, args.ram))) != 1:
        raise RequestError("exactly one source is needed: --guest SPEC, --qmp SOCKET or --ram IDSTR=PATH")
    qmp = qmp_arguments(args)

    def machine() -> Machine:
        if args.guest:
            return open_guest(args.guest, running=running, observer=progress)
        if args.qmp:
            return open_qemu(args.qmp, **qmp)
        return open_ram([option.ram_file() for option in args.ram])

    return machine


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number of seconds")
    return value


def output_path(text: str) -> str:
    """The name of something to be made.

    Raises:
        argparse.ArgumentTypeError: it is ``-``, for which nothing is written to standard output here.
    """
    if text == "-":
        raise argparse.ArgumentTypeError("'-' is no file; for one of that name write ./-")
    return text


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
        raise argparse.ArgumentTypeError(f"{text!r}: '-' is no file; for one of that name write ./-")
    return RamOption(idstr, path, numbers.get("offset", 0), numbers.get("size"))


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """A hint for a name that there is not: the nearest ones, or all of them."""
    import difflib

    near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    return f"did you mean {' or '.join(map(repr, near))}?" if near else f"there are {', '.join(known)}"


class Interrupted(BaseException):
    """A signal that asks the command to end; unwinds through every clean-up on its way out.

    Attributes:
        signum: which one.
        hint: how to go on; may be added on the way.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum
        self.hint = ""
