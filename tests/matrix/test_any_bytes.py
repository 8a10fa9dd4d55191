"""Any bytes: parsers get mutants of good files, in process, by the million.

What they are given, and what has to hold, is in ``support/parsers.py``. These are made by seeded random scripts; where
there is atheris, ``test_guided_bytes.py`` goes on from the corpus, guided by the branches that are reached.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from support.examples import seed, thorough
from support.fault_matrix import Count
from support.limits import Noted, limited
from support.parsers import LONGEST, PARSERS, kept

pytestmark = pytest.mark.slow

MORE = 5 if thorough() else 1
NUMBERS = {"head": 3_000_000, "libvirt header": 2_500_000, "qcow2": 2_200_000, "stream": 400_000, "image": 100_000}
NUMBERS |= {"domain": 200_000, "device sections": 250_000, "disks": 300_000, "VM description": 150_000}
"""The cheapest the most: an input takes 10 to 150 microseconds."""
BATCH = 250_000


@pytest.mark.parametrize(
    ("parser", "first"), [(name, first) for name in PARSERS for first in range(0, NUMBERS[name] * MORE, BATCH)]
)
def test_random_mutants_are_read_as_they_are_or_refused(parser: str, first: int, count: Count) -> None:
    take, number = PARSERS[parser].take, min(BATCH, NUMBERS[parser] * MORE - first)

    def work(noted: Noted) -> int:
        accepted = 0
        for given in (*([] if first else kept(parser)), *scripts(first, number)):
            noted(given)
            accepted += take(given)
        return accepted

    accepted = limited(work, seconds=200)
    assert 0 < accepted < number, "mutants are all good, or all bad"
    count("any bytes, parsers in process", number)


def scripts(first: int, number: int) -> Iterator[bytes]:
    draw = random.Random(f"{seed()} {first}")
    for _ in range(number):
        yield draw.randbytes(1 + draw.randrange(LONGEST // (1 + draw.randrange(4))))
