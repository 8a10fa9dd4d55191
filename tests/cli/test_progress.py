"""What a terminal shows: a line a phase, also of one that ends nobody knows when, and only after a while."""

import io
import threading

import pytest
from support.saving import Heard, save

from parallel_fixedram import open_guest
from parallel_fixedram.cli import progress as command_progress
from parallel_fixedram.cli.output import MANNER
from parallel_fixedram.machines.builtin import child


class Terminal(io.StringIO):
    """A terminal that says when it was written to."""

    def __init__(self):
        super().__init__()
        self.written = threading.Event()

    def isatty(self):
        return True

    def write(self, text):
        super().write(text)
        self.written.set()
        return len(text)


def on_a_terminal(monkeypatch):
    """Make stderr one; not by a fixture, for pytest changes it again between that and the test."""
    monkeypatch.setattr(command_progress.sys, "stderr", terminal := Terminal())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(command_progress, "PROGRESS_AFTER_SECONDS", -1.0)
    return terminal


def test_a_phase_that_blocks_before_the_first_second_is_over_is_shown_all_the_same(monkeypatch):
    """The sync of a save that was short until then: nobody calls again before it is done."""
    terminal = on_a_terminal(monkeypatch)
    monkeypatch.setattr(command_progress, "PROGRESS_AFTER_SECONDS", 0.05)
    with command_progress.ProgressBar() as progress:
        progress("write", 5, 5)
        progress("sync", 0, 0)
        assert terminal.written.wait(30)
        progress("sync", 0, 0)
    assert "sync" in terminal.getvalue()
    assert "write" not in terminal.getvalue()


def test_every_phase_has_a_line_of_its_own_and_one_without_an_end_no_bytes(monkeypatch):
    terminal = on_a_terminal(monkeypatch)
    with command_progress.ProgressBar() as progress:
        progress.phase("write", 1 << 20)
        progress.advanced(1 << 18)
        progress.advanced(3 << 18)
        progress.phase("sync")
        shown = [task.description for task in progress._progress.tasks]
        assert shown == ["write", "sync"]
        assert [task.total for task in progress._progress.tasks] == [1 << 20, None]
        progress._progress.refresh()
    assert "1.0 MiB of 1.0 MiB" in terminal.getvalue()
    assert "of 1 B" not in terminal.getvalue()


def bar_of_first_line(progress):
    """The bar as a terminal would show it, colours included."""
    console = progress._progress.console
    line = console.render_lines(progress._progress.get_renderable(), console.options)[0]
    return [segment for segment in line if "\N{BOX DRAWINGS HEAVY HORIZONTAL}" in segment.text]


def test_the_bar_of_a_phase_without_an_end_is_full_and_still_when_the_next_begins(monkeypatch):
    on_a_terminal(monkeypatch)
    with command_progress.ProgressBar() as progress:
        progress("decide", 0, 0)
        assert len(bar_of_first_line(progress)) > 1  # it has a bright part, which moves
        progress("write", 0, 1 << 20)
        assert len(bar_of_first_line(progress)) == 1


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_a_line_keeps_to_the_width_of_the_terminal(monkeypatch, columns):
    on_a_terminal(monkeypatch)
    monkeypatch.setenv("COLUMNS", str(columns))
    with command_progress.ProgressBar() as progress:
        progress("zero pages", 0, 123 << 30)
        progress("zero pages", 100 << 30, 123 << 30)
        console = progress._progress.console
        [line] = console.render_lines(progress._progress.get_renderable(), console.options)
    text = "".join(segment.text for segment in line)
    assert len(text.rstrip()) <= columns
    assert "100 GiB of 123 GiB" in text


def test_nothing_is_shown_to_who_wants_quiet(monkeypatch):
    terminal = on_a_terminal(monkeypatch)
    monkeypatch.setattr(MANNER, "quiet", True)
    with command_progress.ProgressBar() as progress:
        progress("write", 1, 2)
    assert terminal.getvalue() == ""


def test_a_save_tells_of_every_phase_when_it_begins(tmp_path, monkeypatch):
    monkeypatch.setattr(child, "FILLED_PAGES", 256)
    heard = []
    with open_guest("dense,size=4MiB", progress=lambda *what: heard.append(what)) as guest:
        assert heard == [("fill", pages * 4096, 4 << 20) for pages in (256, 512, 768, 1024)]
        heard.clear()
        save(guest, str(tmp_path / "f.mr"), observer=(observer := Heard()))
    assert observer.phases == [("decide", 0), ("prepare", 0), ("write", 4 << 20), ("sync", 0)]
    assert observer.progress[-1] == ("sync", 0, 0)


def test_the_pass_over_a_guest_that_runs_is_a_phase_of_its_own(tmp_path):
    with open_guest("dense,size=4MiB", running=True) as guest:
        save(guest, str(tmp_path / "f.mr"), observer=(observer := Heard()))
    names = [name for name, _ in observer.phases]
    assert names == ["decide", "first pass", "prepare", "write", "sync"]
    assert ("first pass", 4 << 20, 4 << 20) in observer.progress


def test_a_save_that_is_not_to_be_durable_has_no_phase_of_a_sync(tmp_path):
    with open_guest("dense,size=1MiB") as guest:
        save(guest, str(tmp_path / "f.mr"), durability="none", observer=(observer := Heard()))
    assert "sync" not in dict(observer.phases)
