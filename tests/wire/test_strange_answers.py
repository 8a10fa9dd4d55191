"""Answers that no QEMU gives: what each of them once ended in was an error that nobody expected."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from support import questions
from support.answers import Answering
from support.questions import QUESTIONS, is_refused

STRANGE: dict[str, tuple[str, str, Any, bool]] = {
    "a progress that is no number": ("a job's progress", "query-jobs", [{"id": "job", "current-progress": None}], True),
    "a graph that is none": ("nodes", "query-blockstats", [{"node-name": "a", "parent": "b"}], True),
    "a driver that is a list": ("memory", "query-named-block-nodes", [{"node-name": "a", "drv": []}], False),
    "a node's name that is a list": ("overlays", "query-named-block-nodes", [{"node-name": []}], False),
    "a disk of a size that no file has": (
        "disks",
        "query-block",
        [
            {
                "device": "",
                "qdev": "/machine/peripheral/disk0/virtio-backend",
                "removable": False,
                "inserted": {"ro": False, "node-name": "d", "image": {"virtual-size": 10**400}, "cache": {}},
            }
        ],
        True,
    ),
    "an event that says nothing": ("loading", "MIGRATION", {}, True),
    "parameters that are none": ("loading", "query-migrate-parameters", None, True),
}
"""What is asked, the message that is strange, by its command or event, what it says, and whether that is refused."""


@pytest.mark.parametrize("name", STRANGE)
def test_a_strange_answer_is_refused_in_one_line_or_does_no_harm(tmp_path: Path, name: str) -> None:
    question, strange, says, refused = STRANGE[name]
    with questions.answers(tmp_path) as answers, closing(Answering({**answers, strange: says})) as qemu:
        assert is_refused(QUESTIONS[question], qemu.monitor) is refused
