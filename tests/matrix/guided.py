"""One parser under a fuzzer that is guided by coverage: ``python guided.py PARSER [OPTION...] [FOLDER...]``."""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["parallel_fixedram.format", "parallel_fixedram.core"]):
    from support.parsers import PARSERS

from support.limits import limit_memory


def main() -> None:
    parser, *options = sys.argv[1:]
    take = PARSERS[parser].take

    def attempt(given: bytes) -> None:
        take(given)

    limit_memory()
    atheris.Setup([parser, *options], attempt)
    atheris.Fuzz()


main()
