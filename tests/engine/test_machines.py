"""DirtySources and Machines keep what their protocols promise."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from support.conformance import Dirtying, DirtySourceConformance, MachineConformance
from support.pictures import PAGE, draw
from support.sources import AllDirty, ScriptedGuest

from parallel_fixedram.core.errors import NoFileError, RequestError
from parallel_fixedram.core.protocols import Machine
from parallel_fixedram.machines.builtin.dirty_log import DirtyLog
from parallel_fixedram.machines.builtin.process import GuestProcess
from parallel_fixedram.machines.builtin.spec import GuestSpec
from parallel_fixedram.machines.ram_files import RamFile, RamFiles


class TestDirtyLog(DirtySourceConformance):
    @pytest.fixture(params=[1, 63, 64, 65, 300])
    def dirtying(self, request: pytest.FixtureRequest) -> Iterator[Dirtying]:
        log = DirtyLog(request.param)
        yield Dirtying(log, [request.param], lambda _, page: log.mark(np.array([page])))
        log.close()


class TestAllDirty(DirtySourceConformance):
    @pytest.fixture
    def dirtying(self) -> Dirtying:
        return Dirtying(AllDirty(), [1, 130], lambda *_: None)


class TestScriptedGuestAsDirtySource(DirtySourceConformance):
    @pytest.fixture
    def dirtying(self) -> Iterator[Dirtying]:
        with ScriptedGuest({"a": "A--0", "b": "-" * 65}) as guest:
            yield Dirtying(guest, [4, 65], lambda block, page: guest.write(page, "X", block))


class TestRamFiles(MachineConformance):
    can_run = False

    @pytest.fixture
    def machine(self, tmp_path: Path) -> Iterator[Machine]:
        with (tmp_path / "ram").open("w+b") as file:
            draw(file.fileno(), "A--B0C")
        low = RamFile(idstr="low", path=str(tmp_path / "ram"), length=2 * PAGE)
        high = RamFile(idstr="high", path=str(tmp_path / "ram"), offset=2 * PAGE)
        with RamFiles([low, high], name="raw") as machine:
            yield machine


class TestGuestProcess(MachineConformance):
    @pytest.fixture
    def machine(self) -> Iterator[Machine]:
        with GuestProcess(GuestSpec.parse("hot,size=1MiB")) as machine:
            yield machine

    def run(self, machine: Machine) -> None:
        assert isinstance(machine, GuestProcess)
        machine.start()


class TestScriptedGuestAsMachine(MachineConformance):
    @pytest.fixture
    def machine(self) -> Iterator[Machine]:
        with ScriptedGuest({"a": "A--0", "b": "B"}, running=False) as machine:
            yield machine

    def run(self, machine: Machine) -> None:
        assert isinstance(machine, ScriptedGuest)
        machine.running = True


def test_files_that_cannot_be_a_machine_leave_no_descriptor(tmp_path: Path) -> None:
    path = tmp_path / "ram"
    path.write_bytes(bytes(2 * PAGE))
    good = RamFile(idstr="good", path=str(path))
    before = set(os.listdir("/proc/self/fd"))
    for files, error, message in (
        ([], RequestError, "no RAMBlock"),
        ([good, good], RequestError, "two blocks are named 'good'"),
        ([good, RamFile(idstr="", path=str(path))], RequestError, "block name is empty"),
        ([good, RamFile(idstr="bad", path=str(path), length=100)], RequestError, "not a multiple"),
        ([good, RamFile(idstr="bad", path=str(path) + "x")], NoFileError, "cannot open guest RAM"),
    ):
        with pytest.raises(error, match=message):
            RamFiles(files, name="raw")
    assert set(os.listdir("/proc/self/fd")) == before
