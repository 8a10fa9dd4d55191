"""What the tests of the engine share."""

import gc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.leftovers import children, descriptors

from parallel_fixedram.core.cost import DeviceModel
from parallel_fixedram.core.protocols import Channel
from parallel_fixedram.engine.capture import rounds
from parallel_fixedram.engine.tuning import calibrate
from parallel_fixedram.host.files.channel import FileChannel
from parallel_fixedram.host.files.publish import PendingFile
from parallel_fixedram.image import draft


@pytest.fixture(scope="module", autouse=True)
def _leftovers_of_others_are_gone() -> None:
    """A mapping has a descriptor of its own, and one in a cycle keeps it until somebody collects garbage."""
    gc.collect()


@pytest.fixture(autouse=True)
def _nothing_is_left_behind() -> Iterator[None]:
    """Every test ends with the descriptors and the processes that it began with."""
    before = descriptors(), children()
    yield
    assert (descriptors(), children()) == before


@pytest.fixture
def target(tmp_path: Path) -> str:
    (tmp_path / "out").mkdir()
    return str(tmp_path / "out" / "FILE")


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Callable[[DeviceModel], None]:
    """Have what writes cost told instead of measured: the same choice on every machine."""

    def tell(model: DeviceModel) -> None:
        monkeypatch.setattr(calibrate, "device_model", lambda *_, **__: model)

    return tell


@pytest.fixture
def through(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[FileChannel], Channel]], None]:
    """Make pages go through the channel that a function makes of the file."""

    def install(wrap: Callable[[FileChannel], Channel]) -> None:
        class Pending(PendingFile):
            def open_direct(self, *_: object) -> FileChannel:
                return wrap(self.channel)

        monkeypatch.setattr(draft, "PendingFile", Pending)

    return install


@pytest.fixture
def every_round_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """However few pages a round has, another one may follow."""
    monkeypatch.setattr(rounds, "SMALL_ROUND_PAGES", 1)
