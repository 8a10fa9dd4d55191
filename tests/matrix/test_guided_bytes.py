"""Any bytes, guided: libFuzzer goes on from inputs that once reached a new branch, by the branches that it reaches."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.cli import dying_with_us
from support.examples import seed, thorough
from support.fault_matrix import Count
from support.parsers import LONGEST, PARSERS, kept

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
MORE = 5 if thorough() else 1
NUMBERS = {"head": 300_000, "libvirt header": 300_000, "qcow2": 300_000, "stream": 60_000, "image": 20_000}
NUMBERS |= {"domain": 40_000, "device sections": 40_000, "disks": 40_000, "VM description": 40_000}


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
    runs = NUMBERS[parser] * MORE
    options = [f"-runs={runs}", f"-seed={seed()}", f"-max_len={LONGEST}", "-len_control=10", "-timeout=100"]
    done = subprocess.run(
        [sys.executable, HERE / "guided.py", parser, *options, f"-artifact_prefix={tmp_path}/", new, corpus],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])},
        preexec_fn=dying_with_us(),
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert f"Done {runs} runs" in done.stderr
    count("any bytes, guided by coverage", runs)
