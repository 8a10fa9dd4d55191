"""What several verbs share: options, and lines of a report."""

from __future__ import annotations

import argparse
import math
from typing import TYPE_CHECKING, Any

from parallel_fixedram.cli.help_text import HelpFormatter
from parallel_fixedram.core.errors import RequestError
from parallel_fixedram.core.units import parse_size

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


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
    """How the command talks; ``--quiet`` and ``--debug`` may stand before a verb and after it."""
    group = parser.add_argument_group("output")
    if json:
        group.add_argument("--json", action="store_true", help="one JSON object instead of text, also for an error")
    if progress:
        group.add_argument(
            "--progress",
            choices=("auto", "bar", "json", "none"),
            default="auto",
            help="how to show progress on stderr: with a bar, with one JSON object a line for each event, or not at "
            "all (default auto: a bar on a terminal, without --quiet)",
        )
    group.add_argument(
        "-q",
        "--quiet",
        action="store_true",
        default=argparse.SUPPRESS,
        help="print errors only (and --json)",
    )
    group.add_argument(
        "--debug", action="store_true", default=argparse.SUPPRESS, help="show tracebacks and debug messages"
    )


def output_path(text: str) -> str:
    """The name of something to be made.

    Raises:
        argparse.ArgumentTypeError: it is ``-``, for which nothing is written to standard output here.
    """
    if text == "-":
        raise argparse.ArgumentTypeError("'-' is not a file; for a file of that name write ./-")
    return text


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """A hint for a name that there is not: the nearest ones, or all of them."""
    import difflib

    near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    return f"did you mean {' or '.join(map(repr, near))}?" if near else f"there are {', '.join(known)}"


def positive(text: str) -> int:
    """A whole number of an option, from 1 on."""
    if not text.isascii() or not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number of 1 or more")
    return int(text)


def size(text: str) -> int:
    """A size of an option, bytes."""
    try:
        return parse_size(text)
    except RequestError as error:
        raise argparse.ArgumentTypeError(error.message) from error


def number(expected: str, fits: Callable[[float], bool]) -> Callable[[str], float]:
    """What reads a number of an option, and says what was expected if another text does not fit."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not fits(value):
            raise argparse.ArgumentTypeError(f"{text!r}: expected {expected}")
        return value

    return read


def add_folder_option(parser: Any) -> None:
    """Where an experiment writes its files."""
    parser.add_argument("--folder", metavar="DIR", help="where files are written (default: where temporary files go)")
