"""What the tests of experiments share."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
from support import prepared

from parallel_fixedram.experiments import conditions, fresh_process


@pytest.fixture(autouse=True)
def _processes_that_measure_have_imported_everything(monkeypatch):
    """What an interpreter does before it measures is not looked at here, and there are very many of them.

    Those of an experiment that is a process itself are as ever.
    """

    def start(argv, *, stdin, stdout, stderr, preexec_fn):
        interpreter, *python = argv
        assert interpreter == sys.executable
        return prepared.Process(python, (), (stdin, stdout, stderr), prepared.environment(), text=False)

    if prepared.suits(prepared.environment()):
        monkeypatch.setattr(fresh_process, "subprocess", SimpleNamespace(PIPE=subprocess.PIPE, Popen=start))


@pytest.fixture(autouse=True)
def synced(monkeypatch):
    """Of each time that all file systems would have been synced, an entry: the disks of a test machine are busy."""
    times = []
    monkeypatch.setattr(os, "sync", lambda: times.append("synced"))
    return times


class HostLooks:
    """What is found when somebody looks at this host: nothing, unless a test says otherwise.

    Attributes:
        findings: what is found.
        needs: what was asked for, each time.
    """

    def __init__(self):
        self.findings, self.needs = [], []

    def __call__(self, folder, needs=None):
        self.needs.append(needs)
        return self.findings


@pytest.fixture(autouse=True)
def host_looks(monkeypatch):
    """What else this host does while it is tested is no part of a test."""
    looks = HostLooks()
    monkeypatch.setattr(conditions, "look", looks)
    return looks
