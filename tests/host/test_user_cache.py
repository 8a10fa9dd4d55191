"""What is kept for the next command: there or not there, never an error."""

import json
import os
import stat
from pathlib import Path

import pytest
from support.faults import Call, Run
from support.system_calls import answered

from parallel_fixedram.host import user_cache

FOLDER = "parallel-fixedram"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache folder, which does not exist yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def kept(home: Path) -> list[str]:
    return sorted(os.listdir(home / FOLDER))


@pytest.mark.parametrize("value", [{}, {"a": 1.5, "b": [None, True, "ü"], "c": {"d": {}}}])
def test_what_is_written_is_read_again(home: Path, value: dict[str, object]) -> None:
    user_cache.write("what.json", value)
    assert user_cache.read("what.json") == value
    assert kept(home) == ["what.json"]


def test_what_is_written_again_replaces_what_was_there(home: Path) -> None:
    for number in range(3):
        user_cache.write("what.json", {"number": number})
    user_cache.write("other.json", {"number": 9})
    assert user_cache.read("what.json") == {"number": 2}
    assert kept(home) == ["other.json", "what.json"]


def test_it_is_nobody_elses(home: Path) -> None:
    user_cache.write("what.json", {})
    for path, mode in ((home / FOLDER, 0o700), (home / FOLDER / "what.json", 0o600)):
        assert stat.S_IMODE(path.stat().st_mode) == mode


@pytest.mark.parametrize("junk", [b"", b"{", b"[1]", b"7", b'"x"', b"null", b"\xff\xfe", b"{}{}", b"\0" * 100])
def test_what_was_damaged_is_nothing_and_can_be_replaced(home: Path, junk: bytes) -> None:
    (home / FOLDER).mkdir(parents=True)
    (home / FOLDER / "what.json").write_bytes(junk)
    assert user_cache.read("what.json") == {}
    user_cache.write("what.json", {"a": 1})
    assert user_cache.read("what.json") == {"a": 1}


def test_where_nothing_is_there_is_nothing_to_read_and_reading_makes_nothing(home: Path) -> None:
    assert user_cache.read("what.json") == {}
    assert not home.exists()


def test_a_folder_that_cannot_be_made_is_no_error(home: Path) -> None:
    home.write_bytes(b"in the way")
    user_cache.write("what.json", {"a": 1})
    assert user_cache.read("what.json") == {}
    assert home.read_bytes() == b"in the way"


def test_a_name_that_is_taken_by_a_folder_is_no_error_and_leaves_nothing(home: Path) -> None:
    (home / FOLDER / "what.json").mkdir(parents=True)
    user_cache.write("what.json", {"a": 1})
    assert user_cache.read("what.json") == {}
    assert kept(home) == ["what.json"]


def test_what_is_not_json_is_the_callers_mistake_and_leaves_nothing(home: Path) -> None:
    user_cache.write("what.json", {"a": 1})
    with pytest.raises(TypeError):
        user_cache.write("what.json", {"a": object()})
    assert user_cache.read("what.json") == {"a": 1}
    assert kept(home) == ["what.json"]


def test_a_reader_sees_the_old_or_the_new_and_never_half_of_it(home: Path) -> None:
    user_cache.write("what.json", {"a": 1})
    seen: list[object] = []

    def look(call: Call, _: Run) -> None:
        if call.name.startswith("rename"):
            (new,) = (each for each in (home / FOLDER).iterdir() if each.name != "what.json")
            seen.extend((json.loads(new.read_text()), user_cache.read("what.json")))

    answered(lambda: user_cache.write("what.json", {"a": 2}), look, under=str(home))
    assert [*seen, user_cache.read("what.json")] == [{"a": 2}, {"a": 1}, {"a": 2}]


@pytest.mark.parametrize("home", ["", "relative/folder"])
def test_a_folder_that_is_not_absolute_is_ignored_as_the_specification_wants(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", home)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    user_cache.write("what.json", {})
    assert kept(tmp_path / ".cache") == ["what.json"]
    assert os.listdir(tmp_path) == [".cache"]


def test_without_the_variable_it_is_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    user_cache.write("what.json", {})
    assert kept(tmp_path / ".cache") == ["what.json"]
