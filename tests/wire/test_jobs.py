"""Jobs of a QEMU at moments that a QEMU has too seldom to wait for."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.fake_qmp import Answer, FakeQmp, chain, event, in_turn, refuses, returns, sends

from parallel_fixedram.core.errors import MachineError
from parallel_fixedram.machines.qemu.jobs import cancel_job, follow_job
from parallel_fixedram.machines.qemu.monitor import Monitor

NAME = "commit-disk"
CANCELED = "Operation canceled"


def job(status: str, **more: str) -> Answer:
    return returns([{"id": NAME, "status": status, "current-progress": 1, "total-progress": 2, **more}])


def changed(status: str) -> Answer:
    return sends(event("JOB_STATUS_CHANGE", {"id": NAME, "status": status}))


ENDED = job("concluded", error=CANCELED)


def test_a_job_that_is_ready_when_it_is_cancelled_is_not_completed_but_dismissed(tmp_path: Path) -> None:
    answers = {
        "job-cancel": returns({}),
        "query-jobs": in_turn(chain(changed("ready"), job("ready")), chain(changed("concluded"), job("ready")), ENDED),
        "job-dismiss": returns({}),
    }
    with FakeQmp(tmp_path / "qmp", answers) as server, Monitor(str(server.path)) as monitor:
        with pytest.raises(MachineError, match=CANCELED):
            cancel_job(monitor, "disk 'x'", NAME)
        assert "job-complete" not in server.commands
        assert server.commands[-1] == "job-dismiss"


def test_one_that_had_concluded_before_is_dismissed_all_the_same(tmp_path: Path) -> None:
    answers = {
        "job-cancel": refuses("Job 'commit-disk' in state 'concluded' cannot accept command verb 'cancel'"),
        "query-jobs": job("concluded"),
        "job-dismiss": returns({}),
    }
    with FakeQmp(tmp_path / "qmp", answers) as server, Monitor(str(server.path)) as monitor:
        cancel_job(monitor, "disk 'x'", NAME)
        assert server.commands[-1] == "job-dismiss"


def test_a_job_that_is_followed_is_completed_once(tmp_path: Path) -> None:
    answers = {
        "query-jobs": in_turn(job("running"), job("ready"), job("ready"), job("concluded")),
        "job-complete": chain(changed("waiting"), returns({})),
        "job-dismiss": returns({}),
    }
    with FakeQmp(tmp_path / "qmp", answers) as server, Monitor(str(server.path)) as monitor:
        assert set(follow_job(monitor, "disk 'x'", NAME)) == {(1, 2)}
        assert server.commands.count("job-complete") == 1
