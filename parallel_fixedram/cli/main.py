"""The command: parses arguments, runs a verb, turns errors and signals into exit codes.

Exit codes: 0 done; 1 contents differ; 2 usage, or refused by the capability gate; 3 the file is not what it should be;
4 the guest or its monitor; 5 the host; 6 published, but durability unknown; 128 + n signal n.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn

from parallel_fixedram.core.errors import FixedRamError

PROGRAM = "parallel-fixedram"
VERBS = ("demo", "save", "restore", "verify", "inspect", "diff", "caps")
"""One module of this package each, with ``register(subparsers)`` and ``run(args) -> int``; in the order of ``--help``.

A verb's module is imported for every command, also for ``--help``: what is slow to import belongs inside its ``run``.
"""


class Interrupted(BaseException):
    """A signal that asks the command to end; unwinds through every clean-up on its way out."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line and one hint."""

    def error(self, message: str) -> NoReturn:
        """Exit with code 2."""
        complain(message, f"see {self.prog} --help")
        raise SystemExit(2)


def complain(message: str, hint: str = "") -> None:
    """One line on stderr, and at most one line of hint; a closed stderr is not an error of ours."""
    text = f"{PROGRAM}: error: {message}\n" + (f"{PROGRAM}: hint: {hint}\n" if hint else "")
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except OSError:
        pass


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = Parser(
        prog=PROGRAM,
        description="Save a virtual machine's RAM into a file in which every page has a fixed offset, with worker "
        "processes that write disjoint parts of it in parallel; restore, verify and compare it.",
        epilog=f"example: {PROGRAM} demo",
    )
    parser.add_argument("--debug", action="store_true", help="show tracebacks and debug messages")
    subparsers = parser.add_subparsers(metavar="VERB", required=True, parser_class=Parser)
    for verb in VERBS:
        importlib.import_module(f"parallel_fixedram.cli.{verb}").register(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    args = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.DEBUG if args.debug else logging.WARNING, format=f"{PROGRAM}: %(message)s")
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, _interrupt)
    try:
        code = int(args.run(args))
        sys.stdout.flush()
    except Interrupted as stop:
        complain(f"interrupted by {stop}")
        return 128 + stop.signum
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except FixedRamError as error:
        if args.debug:
            logging.getLogger(__name__).exception("traceback")
        complain(error.message, error.hint)
        return error.exit_code
    return code


def _interrupt(signum: int, _frame: FrameType | None) -> None:
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)
    raise Interrupted(signum)
