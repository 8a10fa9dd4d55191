"""Any bytes: parsers get mutants of good files, in process, by the hundred thousand.

What they are given, and what has to hold, is in ``support/parsers.py``. Seeded random scripts run everywhere; where
there is atheris, libFuzzer goes on from the corpus, guided by the branches that it reaches.
"""

from __future__ import annotations

import importlib.util
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.examples import thorough
from support.limits import Noted, limited
from support.parsers import PARSERS
from support.stages import Count

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
SEED = 20261129
LONGEST = 48
"""Bytes of a script."""
MORE = 20 if thorough() else 1
RANDOM = {"head": 60_000, "stream": 60_000, "image": 15_000, "libvirt header": 60_000, "domain": 40_000}
RANDOM |= {"device sections": 20_000, "disks": 30_000, "VM description": 25_000, "qcow2": 40_000}
GUIDED = {"head": 40_000, "stream": 60_000, "image": 10_000, "libvirt header": 40_000, "domain": 20_000}
GUIDED |= {"device sections": 15_000, "disks": 15_000, "VM description": 15_000, "qcow2": 15_000}
ROW = "any bytes, parsers in process"


def kept(parser: str) -> list[bytes]:
    """Inputs that once reached a branch that no other did, a line each."""
    return [bytes.fromhex(line) for line in (HERE / "corpus" / f"{parser.replace(' ', '-')}.txt").read_text().split()]


@pytest.mark.parametrize("parser", PARSERS)
def test_random_mutants_are_read_as_they_are_or_refused(parser: str, count: Count) -> None:
    take, number = PARSERS[parser].take, RANDOM[parser] * MORE

    def work(noted: Noted) -> int:
        accepted = 0
        for given in (*kept(parser), *scripts(number)):
            noted(given)
            accepted += take(given)
        return accepted

    accepted = limited(work, seconds=60 * MORE)
    assert 0 < accepted < number, "mutants are all good, or all bad"
    count(ROW, number)


def scripts(number: int) -> Iterator[bytes]:
    draw = random.Random(SEED)
    for _ in range(number):
        yield draw.randbytes(1 + draw.randrange(LONGEST // (1 + draw.randrange(4))))


@pytest.mark.parametrize("parser", PARSERS)
def test_mutants_that_reach_new_branches_are_read_as_they_are_or_refused(
    parser: str, tmp_path: Path, count: Count
) -> None:
    if importlib.util.find_spec("atheris") is None:
        assert not (os.environ.get("CI") and sys.version_info[:2] == (3, 11)), "atheris is missing"
        pytest.skip("atheris is not installed: pip install '.[fuzz]', where there is a wheel of it")
    new, corpus = tmp_path / "new", tmp_path / "corpus"
    new.mkdir()
    corpus.mkdir()
    for number, given in enumerate(kept(parser)):
        (corpus / f"{number:04}").write_bytes(given)
    runs = GUIDED[parser] * MORE
    options = [f"-runs={runs}", f"-seed={SEED}", f"-max_len={LONGEST}", "-len_control=10", "-timeout=100"]
    done = subprocess.run(
        [sys.executable, HERE / "guided.py", parser, *options, f"-artifact_prefix={tmp_path}/", new, corpus],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert f"Done {runs} runs" in done.stderr
    count(f"{ROW}, guided by coverage", runs)
