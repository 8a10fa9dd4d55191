"""What the tests of the engine share."""

import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.channels import Through, Wrap
from support.leftovers import children, descriptors

from parallel_fixedram.engine.capture import rounds
from parallel_fixedram.engine.tuning import decide
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
def room_in_the_page_cache(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Says how many bytes the page cache has room for."""
    return lambda size: monkeypatch.setattr(decide, "dirty_room", lambda: size)


@pytest.fixture
def through(monkeypatch: pytest.MonkeyPatch) -> Iterator[Through]:
    """Have files written through other channels, which are closed in the end."""
    made: list[Any] = []

    def install(direct: Wrap | None = None, *, buffered: Wrap | None = None) -> list[Any]:
        class Pending(PendingFile):
            def __enter__(self) -> PendingFile:
                super().__enter__()
                self._plain = self.channel
                if buffered:
                    made.append(buffered(self.channel))
                    self.channel = made[-1]
                return self

            def open_direct(self, *_: object) -> Any:
                if direct is None:
                    return super().open_direct()
                made.append(direct(self._plain))
                return made[-1]

        monkeypatch.setattr(draft, "PendingFile", Pending)
        return made

    yield install
    for each in made:
        if hasattr(type(each), "close"):
            each.close()


@pytest.fixture
def every_round_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """However few pages a round has, another one may follow."""
    monkeypatch.setattr(rounds, "SMALL_ROUND_PAGES", 1)
