"""Two calls fail, the second one often where the first one is being answered: pairs, drawn at random."""

from __future__ import annotations

import errno
import random
import shutil
import tempfile
from collections.abc import Iterator

import pytest
from support import faults
from support.examples import seed, thorough
from support.fault_matrix import Count
from support.faults import Fail
from support.stages import UNLINKS, WAYS, Stage

from parallel_fixedram.core.errors import DurabilityError

REASON = faults.why_not()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(REASON), reason=REASON)]

PAIRS = 10_000 if thorough() else 1_000
ERRNOS = (errno.EIO, errno.ENOSPC, errno.EMFILE, errno.EINTR)


@pytest.fixture
def folder() -> Iterator[str]:
    path = tempfile.mkdtemp(prefix="pairs-", dir="/dev/shm")
    yield path
    shutil.rmtree(path)


@pytest.mark.parametrize("way", WAYS)
def test_whichever_two_calls_fail_the_file_is_the_old_one_or_the_new_one(folder: str, way: str, count: Count) -> None:
    stage, where = Stage(folder, WAYS[way]), random.Random(f"{seed()} {way}")
    stage.before_save()
    most = len(stage.run(stage.save, lambda call, run: None).calls)
    for _ in range(-(-PAIRS // len(WAYS))):
        first, second = sorted(where.sample(range(most), 2))
        answers = {first: Fail(where.choice(ERRNOS)), second: Fail(where.choice(ERRNOS))}
        stage.before_save()
        run = stage.run(stage.save, lambda call, run, answers=answers: answers.get(call.number))
        stage.check_saved(run, published=run.error is None or isinstance(run.error, DurabilityError))
        if run.hit(*UNLINKS):
            stage.check_next_save()
    count("two calls fail", -(-PAIRS // len(WAYS)))
