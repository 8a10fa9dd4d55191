"""What a terminal shows: a line a phase, also of one that ends nobody knows when, and only after a while."""

import io
import json
import threading

import pytest
from support.observers import Heard
from support.saving import save
from support.watched import require_userfaultfd

from parallel_fixedram import open_guest
from parallel_fixedram.cli import progress as command_progress
from parallel_fixedram.cli.bench_progress import RunsProgress
from parallel_fixedram.cli.main import VERBS, main
from parallel_fixedram.cli.output import MANNER
from parallel_fixedram.cli.progress import ProgressBar, ProgressLines, Shown
from parallel_fixedram.core.reports.save import ShardTrace
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
    with ProgressBar() as progress:
        progress.phase("write", 5)
        progress.advanced(5)
        progress.phase("sync")
        assert terminal.written.wait(30)
    assert "sync" in terminal.getvalue()
    assert "write" not in terminal.getvalue()


def test_every_phase_has_a_line_of_its_own_and_one_without_an_end_no_bytes(monkeypatch):
    terminal = on_a_terminal(monkeypatch)
    with ProgressBar() as progress:
        progress.phase("write", 1 << 20)
        progress.advanced(1 << 20)
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
    with ProgressBar() as progress:
        progress.phase("decide")
        assert len(bar_of_first_line(progress)) > 1  # it has a bright part, which moves
        progress.phase("write", 1 << 20)
        assert len(bar_of_first_line(progress)) == 1


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_a_line_keeps_to_the_width_of_the_terminal(monkeypatch, columns):
    on_a_terminal(monkeypatch)
    monkeypatch.setenv("COLUMNS", str(columns))
    with ProgressBar() as progress:
        progress.phase("zero pages", 123 << 30)
        progress.advanced(60 << 30)
        progress.advanced(40 << 30)
        console = progress._progress.console
        [line] = console.render_lines(progress._progress.get_renderable(), console.options)
    text = "".join(segment.text for segment in line)
    assert len(text.rstrip()) <= columns
    assert "100 GiB of 123 GiB" in text


HOW = {"auto": ProgressBar, "bar": ProgressBar, "json": ProgressLines, "none": Shown}


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("quiet", [False, True])
@pytest.mark.parametrize("terminal", [False, True])
def test_a_bar_is_for_a_terminal_unless_asked_for(monkeypatch, how, quiet, terminal):
    monkeypatch.setattr(command_progress.sys, "stderr", Terminal() if terminal else io.StringIO())
    monkeypatch.setattr(MANNER, "quiet", quiet)
    monkeypatch.setattr(MANNER, "progress", how)
    expected = HOW[how] if how != "auto" or (terminal and not quiet) else Shown
    assert type(command_progress.shown()) is expected


class Clock:
    """Stands still unless it is told to go on."""

    now = 100.0

    def __call__(self):
        return self.now


def lines_of(monkeypatch, tell):
    """The objects that an observer prints while ``tell(observer, clock)`` tells it things, without their heads."""
    monkeypatch.setattr(command_progress.sys, "stderr", stderr := io.StringIO())
    clock = Clock()
    with ProgressLines(clock) as observer:
        tell(observer, clock)
    told = [json.loads(line) for line in stderr.getvalue().splitlines()]
    assert all((each.pop("schema"), each.pop("version")) == ("parallel_fixedram.progress", 1) for each in told)
    return told


def test_json_lines_say_what_an_observer_hears(monkeypatch):
    trace = ShardTrace(
        worker=1, round=0, block=0, first_page=64, pages=64, offset=1 << 20, bytes=4096, started=0.5, ended=0.75
    )

    def tell(observer, _):
        observer.phase("decide")
        observer.phase("write", 8192)
        observer.advanced(4096)
        observer.shard(trace)
        observer.note("something")
        observer.advanced(4096)

    assert lines_of(monkeypatch, tell) == [
        {"event": "phase", "name": "decide", "total": 0},
        {"event": "phase", "name": "write", "total": 8192},
        {
            "event": "shard",
            "worker": 1,
            "round": 0,
            "block": 0,
            "first_page": 64,
            "pages": 64,
            "offset": 1 << 20,
            "bytes": 4096,
            "started": 0.5,
            "ended": 0.75,
            "write_bins": [],
        },
        {"event": "note", "text": "something"},
        {"event": "advanced", "done": 8192, "total": 8192},
    ]


def test_json_lines_say_some_times_a_second_how_far_a_phase_is_and_always_how_far_it_came(monkeypatch):
    def tell(observer, clock):
        for name in ("digests", "RAM"):
            observer.phase(name, 1000)
            for _ in range(10):
                clock.now += command_progress.LINE_SECONDS / 4
                observer.advanced(99)

    done = [each["done"] for each in lines_of(monkeypatch, tell) if each["event"] == "advanced"]
    assert done == 2 * [4 * 99, 8 * 99, 10 * 99]


def test_json_lines_do_not_mind_that_nobody_reads_them(monkeypatch):
    class Gone(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    monkeypatch.setattr(command_progress.sys, "stderr", Gone())
    with ProgressLines() as observer:
        observer.phase("write", 1)
        observer.advanced(1)


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("auto", "parallel-fixedram: few: 1 of 3 runs done, about 7 s left: ours"),
        ("none", ""),
        (
            "json",
            '{"schema": "parallel_fixedram.progress", "version": 1, "event": "run", "scenario": "few", "done": 1, '
            '"total": 3, "left_seconds": 7.25, "what": "ours"}',
        ),
    ],
)
def test_runs_of_a_scenario_are_shown_as_asked(monkeypatch, how, expected):
    monkeypatch.setattr(command_progress.sys, "stderr", stderr := io.StringIO())
    for name, value in (("progress", how), ("quiet", False), ("as_json", False)):  # whatever a test before has left
        monkeypatch.setattr(MANNER, name, value)
    with RunsProgress("few") as progress:
        progress(1, 3, 7.25, "ours")
    assert stderr.getvalue().strip() == expected


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_that_shows_how_far_it_is_takes_progress(verb, capsys):
    with pytest.raises(SystemExit):
        main([verb, "--help"])
    assert ("--progress" in capsys.readouterr().out) == (
        verb not in ("guests", "clean", "doctor", "inspect", "caps", "bench")
    )


def test_a_program_sees_how_far_a_command_is_beside_its_report(tmp_path, capsys):
    with open_guest("dense,size=4MiB") as guest:
        save(guest, path := str(tmp_path / "f.mr"))
    assert main(["verify", path, "--json", "--progress", "json"]) == 0
    found = capsys.readouterr()
    assert json.loads(found.out)["schema"] == "parallel_fixedram.verify"
    told = [json.loads(line) for line in found.err.splitlines()]
    assert [each["event"] for each in told if each["event"] != "advanced"] == ["phase"]
    assert (told[0]["name"], told[0]["total"]) == ("digests", 4 << 20)
    assert (told[-1]["event"], told[-1]["done"]) == ("advanced", 4 << 20)


def test_a_program_sees_who_wrote_what_while_a_guest_is_saved(tmp_path, capsys):
    assert main(["save", str(tmp_path / "f.mr"), "--guest", "dense,size=4MiB", "--quiet", "--progress", "json"]) == 0
    told = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [each["name"] for each in told if each["event"] == "phase"] == ["fill", "decide", "prepare", "write", "sync"]
    shards = [each for each in told if each["event"] == "shard"]
    assert sum(each["bytes"] for each in shards) == 4 << 20
    done = [(each["done"], each["total"]) for each in told if each["event"] == "advanced"]
    assert done[-1] == (4 << 20, 4 << 20)


def test_a_guest_tells_how_far_it_is_filled(monkeypatch):
    monkeypatch.setattr(child, "FILLED_PAGES", 512)
    heard = Heard()
    with open_guest("dense,size=5MiB", observer=heard):
        assert heard.events == [("phase", "fill", 5 << 20), *2 * [("advanced", 2 << 20)], ("advanced", 1 << 20)]
    heard = Heard()
    with open_guest("zero,size=5MiB", observer=heard):
        assert heard.events == []


def test_a_save_tells_of_every_phase_when_it_begins(tmp_path):
    with open_guest("dense,size=4MiB") as guest:
        observer = Heard()
        save(guest, str(tmp_path / "f.mr"), observer=observer)
    assert observer.phases == [("decide", 0), ("prepare", 0), ("write", 4 << 20), ("sync", 0)]
    assert observer.progress[-1] == ("sync", 0, 0)


@pytest.mark.parametrize(
    ("mode", "phases"),
    [("snapshot", ["prepare", "first pass"]), ("compare", ["first pass", "prepare", "write"])],
)
def test_the_pass_over_a_guest_that_runs_is_a_phase_of_its_own(tmp_path, mode, phases):
    if mode == "snapshot":
        require_userfaultfd()
    with open_guest("dense,size=4MiB", running=True) as guest:
        save(guest, str(tmp_path / "f.mr"), mode=mode, observer=(observer := Heard()))
    names = [name for name, _ in observer.phases]
    assert names == ["decide", *phases, "sync"]
    assert ("first pass", 4 << 20, 4 << 20) in observer.progress


def test_a_save_that_is_not_to_be_durable_has_no_phase_of_a_sync(tmp_path):
    with open_guest("dense,size=1MiB") as guest:
        save(guest, str(tmp_path / "f.mr"), durability="none", observer=(observer := Heard()))
    assert "sync" not in dict(observer.phases)
