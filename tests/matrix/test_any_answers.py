"""Any answers: whatever a monitor says, what we make of it is an answer or an error in one line.

Real answers of a QEMU, one of the messages altered: its JSON says something else, or its bytes are other ones.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import pytest
from support import questions
from support.answers import Answering
from support.examples import seed, thorough
from support.fake_qmp import line
from support.fault_matrix import Count
from support.limits import Noted, limited
from support.mutants import VALUES, Template, changed, mutant, places, replaced
from support.questions import QUESTIONS, is_refused, key_of, sent, told

from parallel_fixedram.host.processes import signals

pytestmark = pytest.mark.slow

BATCH = 10_000
NUMBER = BATCH * (50 if thorough() else 5)
OTHERWISE = 32
"""Scripts whose first byte is below it alter more than what a command returns."""
ROW = "any answers of a monitor"


@pytest.fixture
def answers(tmp_path: Path) -> Iterator[dict[str, Any]]:
    with questions.answers(tmp_path) as answers:
        yield answers


@pytest.mark.parametrize("name", QUESTIONS)
def test_any_value_in_any_place_is_an_answer_or_an_error_in_one_line(
    answers: dict[str, Any], name: str, count: Count
) -> None:
    def work(qemu: Answering, noted: Noted) -> int:
        tried = 0
        for turn, message in enumerate(told(qemu, QUESTIONS[name])):
            value = message[key_of(message)]
            for place in range(places(value)):
                for number, wanted in enumerate(VALUES):
                    noted(f"{turn} {place} {number}".encode())
                    new = replaced(value, place, wanted)
                    qemu.begin(turn, lambda message, new=new: sent({**message, key_of(message): new}))
                    if is_refused(QUESTIONS[name], qemu.monitor):
                        qemu.again()
                    tried += 1
        return tried

    count(ROW, with_qemu(answers, work))


@pytest.mark.parametrize("first", range(0, NUMBER, BATCH))
def test_an_altered_message_is_an_answer_or_an_error_in_one_line(
    answers: dict[str, Any], first: int, count: Count
) -> None:
    def work(qemu: Answering, noted: Noted) -> int:
        draw, refused = random.Random(f"{seed()} {first}"), 0
        messages = {name: len(told(qemu, question)) for name, question in QUESTIONS.items()}
        for number in range(BATCH):
            name = draw.choice(list(QUESTIONS))
            turn, script = draw.randrange(messages[name]), draw.randbytes(2 + draw.randrange(16))
            noted(f"{number} {name} {turn} {script.hex()}".encode())
            qemu.begin(turn, lambda message, script=script: altered(message, script), repeats=script[0] < OTHERWISE)
            if is_refused(QUESTIONS[name], qemu.monitor):
                refused += 1
                qemu.again()
        return refused

    assert BATCH // 10 < with_qemu(answers, work) < BATCH
    count(ROW, BATCH)


def with_qemu(answers: dict[str, Any], work: Callable[[Answering, Noted], int]) -> int:
    """Work with a QEMU in a limited process."""

    def limited_work(noted: Noted) -> int:
        signals.held = nullcontext  # nobody sends any, and to hold them takes as long as the rest
        with closing(Answering(answers)) as qemu:
            return work(qemu, noted)

    return limited(limited_work, seconds=300)


def altered(message: dict[str, Any], script: bytes) -> bytes:
    """Most say something else where it matters; of the others one half throughout, one half has other bytes."""
    if script[0] < OTHERWISE // 2:
        return mutant(Template(line(message)), script[1:], 3)
    if script[0] < OTHERWISE:
        return sent(changed(message, script[1:]))
    key = key_of(message)
    return sent({**message, key: changed(message[key], script[1:])})
