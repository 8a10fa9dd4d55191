"""Options of a save or a restore, group by group, and the values that they ask for."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from parallel_fixedram.cli import common
from parallel_fixedram.core.errors import RequestError
from parallel_fixedram.core.profiles import Profile
from parallel_fixedram.core.save_options import (
    CAPTURE_MEMORY,
    MAX_ROUNDS,
    MAX_STALL_SECONDS,
    CaptureMode,
    Capturing,
    DirectIO,
    Gate,
    Writing,
)
from parallel_fixedram.core.units import format_count, format_size

if TYPE_CHECKING:
    from parallel_fixedram.core.reports.choice import ChoiceReport


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
        help="whose rules apply: those of QEMU 8.2 with the fixed-ram patch (default), QEMU 10.0 or QEMU 11.1",
    )
    parser.add_argument(
        "--experimental-multifd",
        action="store_true",
        help="allow fixed-ram with multifd, that is, more than one channel; lifts no other rule",
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
    group = parser.add_argument_group("how to write", "what is not given is chosen by what writes cost in that folder")
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
        help="pages that a worker is given at a time (default auto)",
    )
    group.add_argument(
        "--calibrate",
        action="store_true",
        help="measure what writes cost there, even if that is known (about a second)",
    )


def writing(args: argparse.Namespace) -> Writing:
    """What the options of ``add_writing_options`` ask for.

    Raises:
        RequestError: a number out of its range.
    """
    return Writing(
        direct_io=DirectIO(args.direct_io),
        gap_pages=args.gap_pages,
        shard_pages=args.shard_pages,
        calibrate=args.calibrate,
    )


def add_snapshot_options(parser: Any) -> None:
    """What a snapshot may cost the guest, and us."""
    parser.add_argument(
        "--max-stall",
        type=float,
        metavar="SECONDS",
        help="how long a snapshot may make a write of the guest wait; rather than make it wait longer, the snapshot "
        f"is given up (default {MAX_STALL_SECONDS:g})",
    )
    parser.add_argument(
        "--capture-memory",
        type=common.size,
        metavar="SIZE",
        help=f"memory for copies of a snapshot that wait to be written (default {format_size(CAPTURE_MEMORY)})",
    )


def add_capture_options(parser: Any) -> None:
    """How the file comes to show a running guest at one instant."""
    group = parser.add_argument_group(
        "a guest that runs during the save", "a built-in guest runs if --capture is given, and is not auto"
    )
    group.add_argument(
        "--capture",
        choices=[str(mode) for mode in CaptureMode],
        default=str(CaptureMode.AUTO),
        help="how the file comes to hold one instant. snapshot: all pages while the guest runs, each copied "
        "before its first write after that instant; compare: all pages while the guest runs, then it is stopped and "
        "those whose hash has changed follow; rounds: what a dirty log names, again and again, the last time while "
        "the guest is stopped (built-in guest only); stopped: all pages while the guest is stopped; "
        "auto (default): the one with the shortest pause, other than rounds",
    )
    group.add_argument(
        "--max-rounds",
        type=int,
        metavar="N",
        help=f"the most rounds of --capture rounds (default {MAX_ROUNDS})",
    )
    add_snapshot_options(group)
    group.add_argument(
        "--check-instant",
        action="store_true",
        help="copy all RAM while the guest is stopped, and compare the file with the copy, page by page, before it "
        "gets its name: a test of this program on this host, which makes the pause long",
    )


_MODES_OF = {
    "max_rounds": (CaptureMode.ROUNDS,),
    "max_stall": (CaptureMode.SNAPSHOT, CaptureMode.AUTO),
    "capture_memory": (CaptureMode.SNAPSHOT, CaptureMode.AUTO),
}
"""Options that belong to some ways only."""


def capturing(args: argparse.Namespace) -> Capturing:
    """What the options of ``add_capture_options`` ask for.

    Raises:
        RequestError: they do not go together, or a number is out of its range.
    """
    mode = CaptureMode(args.capture)
    given = _given(args, _MODES_OF)
    for name in given:
        if mode not in (modes := _MODES_OF[name]):
            raise RequestError(f"--{name.replace('_', '-')} is for --capture {modes[0]}")
    return Capturing(mode=mode, check_instant=args.check_instant, **given)


def snapshot_limits(args: argparse.Namespace) -> Capturing:
    """What the options of ``add_snapshot_options`` ask for.

    Raises:
        RequestError: a number is out of its range.
    """
    return Capturing(mode=CaptureMode.SNAPSHOT, **_given(args, ("max_stall", "capture_memory")))


def _given(args: argparse.Namespace, names: Iterable[str]) -> dict[str, Any]:
    """Options that were given, by name."""
    return {name: value for name in names if (value := getattr(args, name)) is not None}


def choice_lines(choice: ChoiceReport) -> list[str]:
    """A choice and its reasons for people."""
    how = "direct I/O" if choice.direct_io else "page cache"
    how += {
        "snapshot": " while the guest runs, as it was at one instant",
        "compare": " while the guest runs, then what changed",
        "rounds": " in rounds",
    }.get(choice.capture, "")
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
    return Gate(
        channels=args.channels,
        experimental_multifd=args.experimental_multifd,
        capabilities=dict(args.cap),
        profile=Profile(args.profile),
    )
