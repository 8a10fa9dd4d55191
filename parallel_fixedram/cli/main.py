"""The command: parses arguments, runs a verb, turns errors and signals into exit codes.

Exit codes: 0 done; 1 contents differ, a doctor's verdict, or leftovers; 2 usage, or refused by the capability gate;
3 the file is not what it should be; 4 the guest or its monitor; 5 the host; 6 published, but durability unknown;
128 + n signal n.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import logging
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from parallel_fixedram.cli import interrupts, streams
from parallel_fixedram.cli.common import add_manner_options, did_you_mean
from parallel_fixedram.cli.help_text import HelpFormatter
from parallel_fixedram.cli.output import MANNER, PROGRAM, complain
from parallel_fixedram.cli.process_limits import limit_hint, require_address_space
from parallel_fixedram.core.errors import FixedRamError, HostError

VERBS = (
    "demo",
    "save",
    "plan",
    "restore",
    "clone",
    "guests",
    "clean",
    "disks",
    "try-capture",
    "doctor",
    "verify",
    "inspect",
    "diff",
    "caps",
    "bench",
)
"""One module of this package each, with ``register(subparsers)`` and ``run(args) -> int``; in the order of ``--help``.

A verb's module is imported for ``--help``, too: what is slow to import belongs inside its ``run``.
"""


WITH_COMMAND = ("restore", "clone")
"""Verbs that take a QEMU command line after ``--``; ``verify`` does with LOAD."""

LOAD = "--load"

WITH_PROGRESS = ("demo", "save", "plan", "restore", "clone", "disks", "try-capture", "verify", "diff")
"""Verbs that may take a while, and show how far they are."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line and one hint, and which takes no abbreviated options."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"allow_abbrev": False, **options})

    def _print_message(self, message: str, file: Any = None) -> None:
        """Print, and fail if that fails; argparse would ignore it."""
        if message:
            print(message, end="", file=file or sys.stderr, flush=True)

    def error(self, message: str) -> NoReturn:
        """Exit with code 2."""
        complain(2, message, f"see {self.prog} --help")
        raise SystemExit(2)


class _Version(argparse.Action):
    """Prints the version; looks it up only then, because that takes as long as all of ``--help``."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        from importlib.metadata import version

        print(f"{PROGRAM} {version(PROGRAM)}", flush=True)
        parser.exit()


def build_parser(verbs: Sequence[str] = VERBS) -> argparse.ArgumentParser:
    """The command line, with the options of these verbs."""
    parser = Parser(
        prog=PROGRAM,
        description="Save a virtual machine's RAM into a file in which every page has a fixed offset, with worker "
        "processes that write disjoint parts of it in parallel; restore, clone, verify and compare it.",
        epilog=f"Start with {PROGRAM} demo; {PROGRAM} VERB --help shows the options of a verb, and "
        "examples that work.\n\n"
        "Sizes are bytes, or have a suffix: 64KiB, 1.5GiB (1024), 2GB (1000), 1G (1024, as in QEMU).\n\n"
        "Exit codes: 0 done; 1 contents differ, doctor finds that a save would be refused, bench check that "
        "measurements would suffer, or clean that something is left; 2 usage, or refused by the "
        "capability gate; 3 the file is not what it should be; 4 the guest, or QEMU; 5 the host; 6 published, but "
        "durability unknown; 128 + n signal n.",
        formatter_class=HelpFormatter,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    subparsers = parser.add_subparsers(dest="verb", metavar="VERB", required=True, parser_class=Parser)
    for verb in verbs:
        importlib.import_module(f"parallel_fixedram.cli.{verb.replace('-', '_')}").register(subparsers)
    for verb, each in subparsers.choices.items():
        if verb != "bench":  # whose commands have them
            add_manner_options(each, json=True, progress=verb in WITH_PROGRESS)
    add_manner_options(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code; without ``argv`` it is what this process is for."""
    alone = argv is None
    if alone:
        _prepare_process()
    streams.prepare(alone=alone)
    args = argparse.Namespace(debug=False, quiet=False, progress="auto")
    try:
        interrupts.begin()
        verb, argv, args.command = _split_command(sys.argv[1:] if argv is None else argv)
        MANNER.as_json = "--json" in argv  # also for errors that are found before arguments are understood
        if not argv:
            build_parser().print_help()
            return 2
        if verb and verb not in VERBS:
            complain(2, f"there is no verb {verb!r}", did_you_mean(verb, VERBS))
            return 2
        # the options of other verbs need not be made
        _, unknown = build_parser([verb] if verb in VERBS else VERBS).parse_known_args(argv, args)
        if unknown:
            complain(2, f"unrecognized arguments: {' '.join(unknown)}", _hint_for_unknown(args))
            return 2
        MANNER.quiet, MANNER.progress = args.quiet, args.progress
        logging.basicConfig(level=_log_level(args), format=f"{PROGRAM}: %(message)s")
        require_address_space()
        with _without_text() if args.quiet and not args.json else contextlib.nullcontext():
            code = int(args.run(args))
        sys.stdout.flush()
    except interrupts.Interrupted as stop:
        stop.answered = True
        return _interrupted(stop.signum, stop.hint)
    except Exception as error:  # the outermost caller: expected or not, it becomes one line and an exit code
        if signum := interrupts.dropped():
            return _interrupted(signum)
        if args.debug:
            logging.getLogger(__name__).exception("traceback")
        return _failed(error, debug=args.debug)
    finally:
        for stream in (sys.stdout, sys.stderr):
            streams.is_broken(stream)
        if alone:
            gc.freeze()  # otherwise the interpreter looks through all imported objects before it ends
    return code


def _split_command(argv: Sequence[str]) -> tuple[str, Sequence[str], Sequence[str] | None]:
    """The verb; and the arguments before and after ``--`` where a QEMU command line follows it, not for argparse."""
    verb = next((argument for argument in argv if not argument.startswith("-")), "")
    if verb == "bench":
        from parallel_fixedram.cli.bench import with_run

        argv = with_run(argv)
    place = argv.index("--") if "--" in argv else len(argv)
    if place < len(argv) and (verb in WITH_COMMAND or (verb == "verify" and LOAD in argv[:place])):
        return verb, argv[:place], argv[place + 1 :]
    return verb, argv, None


def _log_level(args: argparse.Namespace) -> int:
    if args.debug:
        return logging.DEBUG
    if args.json:  # stderr has one object or none
        return logging.CRITICAL
    return logging.ERROR if args.quiet else logging.WARNING


@contextlib.contextmanager
def _without_text() -> Iterator[None]:
    """What is printed goes nowhere."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


def _hint_for_unknown(args: argparse.Namespace) -> str:
    """What to do about arguments that no verb knows."""
    if args.verb in WITH_COMMAND and args.command is None:
        return f"a QEMU command line comes after --; see {PROGRAM} {args.verb} --help"
    return f"see {PROGRAM} {args.verb} --help"


def _failed(error: Exception, *, debug: bool) -> int:
    """Say what went wrong; returns the exit code."""
    if isinstance(error, BrokenPipeError):
        return 128 + signal.SIGPIPE
    if isinstance(error, OSError) and streams.is_broken(sys.stdout):
        error = HostError.from_os("cannot write to stdout", error)
    hint = ""
    if not isinstance(error, FixedRamError):
        # 1, which an uncaught exception ends with, would say that contents differ
        hint = "" if debug or isinstance(error, (MemoryError, OSError)) else "--debug shows where it came from"
        error = HostError.from_any("", error)
    if isinstance(error, HostError):
        hint = error.hint or limit_hint(error.errno) or hint
    complain(error.exit_code, error.message.removeprefix(": "), error.hint or hint)
    return error.exit_code


def _interrupted(signum: int, hint: str = "") -> int:
    """Say which signal it was; returns the exit code."""
    complain(128 + signum, f"interrupted by {signal.Signals(signum).name}", hint)
    return 128 + signum


def _prepare_process() -> None:
    """Keep numpy from starting threads for linear algebra: they take processor time, and we do no linear algebra."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
