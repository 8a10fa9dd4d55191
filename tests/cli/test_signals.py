"""Signals, terminals and streams that go away: the moment is chosen by freezing the command, never by sleeping."""

import io
import itertools
import os
import pty
import select
import signal
import subprocess
import sys

import pytest
from support.cli import Held, Running, call, done, part_of, refused, run, unchanged
from support.qemu_tools import missing

from parallel_fixedram.cli import progress as command_progress

GUEST = "dense,size=1MiB"

BAR_AFTER = (
    "import sys; from parallel_fixedram.cli import main, progress; "
    "progress.PROGRESS_AFTER_SECONDS = {}; sys.exit(main.main())"
)
"""The command, but with a progress bar after so many seconds."""


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    """A file to restore, verify and compare."""
    path = tmp_path_factory.mktemp("image") / "guest.mr"
    done(call("save", path, "--guest", GUEST, "--durability", "none"))
    return path


def saving(folder, *more, **options):
    """A save that is held while it writes pages."""
    return Held("save", folder / "new.mr", "--guest", GUEST, *more, **options)


@pytest.mark.parametrize(
    ("signum", "code", "more"),
    [
        (signal.SIGINT, 130, []),
        (signal.SIGINT, 130, ["--channels", "2", "--experimental-multifd"]),
        (signal.SIGTERM, 143, []),
        (signal.SIGTERM, 143, ["--capture", "rounds"]),
        (signal.SIGHUP, 129, []),
    ],
)
def test_a_signal_during_a_save_leaves_nothing_behind(tmp_path, signum, code, more):
    with unchanged(tmp_path), saving(tmp_path, *more) as running:
        assert part_of(tmp_path / "new.mr").exists()
        assert len(running.family()) >= 3  # itself, the guest, a worker
        running.send(signum)
        refused(running.finish(), code, f"error: interrupted by {signum.name}\n", "")


def test_a_signal_during_a_save_keeps_the_file_that_was_to_be_replaced(tmp_path):
    (tmp_path / "new.mr").write_bytes(b"old")
    with unchanged(tmp_path), saving(tmp_path, "--overwrite") as running:
        assert (tmp_path / "new.mr").read_bytes() == b"old"
        running.send(signal.SIGTERM)
        refused(running.finish(), 143, "interrupted by SIGTERM\n")


def test_a_save_that_was_held_up_ends_with_the_new_file(tmp_path):
    """The held save of the other tests is a healthy one."""
    (tmp_path / "new.mr").write_bytes(b"old")
    with saving(tmp_path, "--overwrite") as running:
        running.release()
        done(running.finish())
    assert os.listdir(tmp_path) == ["new.mr"]
    done(call("verify", tmp_path / "new.mr"))


def test_a_signal_while_the_guest_boots_leaves_no_process(tmp_path):
    with unchanged(tmp_path), Running("save", tmp_path / "new.mr", "--guest", "dense,size=512MiB") as running:
        running.until(lambda: len(running.family()) == 2)
        running.freeze()
        assert os.listdir(tmp_path) == []
        running.send(signal.SIGINT)
        refused(running.finish(), 130, "interrupted by SIGINT\n", "")


def test_two_signals_are_as_good_as_one(tmp_path):
    with unchanged(tmp_path), saving(tmp_path) as running:
        running.freeze()  # so that both are there when it goes on
        os.kill(running.pid, signal.SIGTERM)
        os.kill(running.pid, signal.SIGINT)
        running.send(signal.SIGHUP)
        result = running.finish()
        assert result.code in (129, 130, 143)
        refused(result, result.code, "interrupted by SIG")


def test_control_c_on_a_terminal_reaches_every_process_and_still_ends_in_good_order(tmp_path):
    with unchanged(tmp_path), saving(tmp_path, "--channels", "2", "--experimental-multifd") as running:
        os.killpg(running.pid, signal.SIGINT)
        refused(running.finish(), 130, "interrupted by SIGINT\n", "")


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_during_a_restore_takes_back_the_file_it_made(tmp_path, image, signum, code):
    with unchanged(tmp_path), Held("restore", image, "--ram", f"pc.ram={tmp_path / 'new'}") as running:
        assert os.listdir(tmp_path) == [".new.part"]
        running.send(signum)
        refused(running.finish(), code, f"interrupted by {signum.name}\n", "")


INTERRUPTED_WHEN = """
import os, signal, sys
from parallel_fixedram.cli.main import main
from parallel_fixedram.host import linux
real = {call}
def interrupted(*args, **kwargs):
    {call} = real
    result = real(*args, **kwargs)
    os.kill(os.getpid(), signal.SIGINT)
    return result
{call} = interrupted
sys.exit(main())
"""
"""The command, with a signal right after its first call of that name."""


@pytest.mark.parametrize("verb", ["save", "restore"])
def test_a_signal_in_the_moment_in_which_a_file_is_made_takes_it_back(tmp_path, image, verb):
    # RAM from a file: forking a guest would end numpy's threads, one of which may be the one to take the signal
    argv = ["--ram", f"pc.ram={image if verb == 'save' else tmp_path / 'new'}"]
    python = ("-c", INTERRUPTED_WHEN.format(call="os.fchmod"))
    with unchanged(tmp_path):
        result = run(verb, {"save": tmp_path / "new.mr", "restore": image}[verb], *argv, python=python)
        refused(result, 130, "interrupted by SIGINT\n", "")


@pytest.mark.parametrize("call_name", ["os.fsync", "linux.rename_new", "os.ftruncate"])
def test_a_signal_at_any_step_of_publishing_leaves_nothing_or_the_whole_file(tmp_path, call_name):
    python = ("-c", INTERRUPTED_WHEN.format(call=call_name))
    result = run("save", tmp_path / "new.mr", "--guest", "dense,size=1MiB", python=python)
    refused(result, 130, "interrupted by SIGINT\n", "")
    if call_name == "linux.rename_new":  # it has its name already
        done(call("verify", tmp_path / "new.mr"))
    else:
        assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("verb", ["verify", "diff"])
def test_a_signal_during_a_check_is_no_verdict(image, verb):
    with Held(verb, image, *[image] * (verb == "diff")) as running:
        running.send(signal.SIGINT)
        refused(running.finish(), 130, "interrupted by SIGINT\n", "")


def test_a_signal_during_the_demo_leaves_nothing_behind(tmp_path):
    with unchanged(tmp_path), Held("demo", "--folder", tmp_path, "--size", "8MiB") as running:
        running.send(signal.SIGINT)
        result = running.finish()
        assert (result.code, result.err) == (130, "parallel-fixedram: error: interrupted by SIGINT\n")


def test_what_nohup_protects_from_stays_so(tmp_path):
    with saving(tmp_path, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)) as running:
        os.killpg(running.pid, signal.SIGHUP)
        running.release()
        done(running.finish())
    assert os.listdir(tmp_path) == ["new.mr"]


def test_a_save_succeeds_where_nobody_may_wait_for_children(tmp_path):
    with saving(tmp_path, preexec_fn=lambda: signal.signal(signal.SIGCHLD, signal.SIG_IGN)) as running:
        running.release()
        done(running.finish())
    assert os.listdir(tmp_path) == ["new.mr"]


def test_after_a_kill_no_process_is_left_and_the_next_save_clears_up(tmp_path):
    with saving(tmp_path, "--channels", "2", "--experimental-multifd") as running:
        children = [os.pidfd_open(pid) for pid in running.family()[1:]]
        assert len(children) == 3  # the guest and two workers
        os.kill(running.pid, signal.SIGKILL)
        assert running.process.wait(timeout=60) == -signal.SIGKILL
        for fd in children:
            assert select.select([fd], [], [], 60)[0]  # readable as soon as that process is dead
            os.close(fd)
        assert running.family() == []
        assert os.listdir(tmp_path) == [".new.mr.part"]
    done(run("save", tmp_path / "new.mr", "--guest", GUEST))
    assert os.listdir(tmp_path) == ["new.mr"]


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["--channels", "4", "--experimental-multifd"]], ids=" ".join)
def test_a_signal_at_any_moment_of_a_real_save_leaves_nothing_behind(tmp_path, more):
    """Nothing held, nothing patched: the signal comes when the n-th child appears, wherever the save is by then."""
    for children in (1, 2):
        save = Running("save", tmp_path / "new.mr", "--guest", "dense,size=512MiB", *more)
        with unchanged(tmp_path), save as running:
            running.until(lambda children=children: len(running.family()) > children)
            running.freeze()
            running.send(signal.SIGTERM)
            refused(running.finish(), 143, "interrupted by SIGTERM\n", "")


def broken_pipe():
    """The writing end of a pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    return writer


@pytest.mark.parametrize("streams", [["stderr"], ["stdout"], ["stdout", "stderr"]], ids=" and ".join)
def test_streams_that_nobody_reads_do_not_break_the_clean_up(tmp_path, streams):
    writer = broken_pipe()
    options = dict.fromkeys(streams, writer)
    with unchanged(tmp_path):
        assert run("save", tmp_path / "new.mr", "--ram", "a=nowhere", **options).code == 2
        with saving(tmp_path, **options) as running:
            running.send(signal.SIGINT)
            assert running.finish().code == 130
    os.close(writer)


@pytest.mark.parametrize("streams", [["stderr"], ["stdout"], ["stdout", "stderr"]], ids=" and ".join)
def test_streams_that_nobody_reads_do_not_spoil_a_save(tmp_path, streams):
    writer = broken_pipe()
    result = run("save", tmp_path / "new.mr", "--guest", "dense,size=1MiB", **dict.fromkeys(streams, writer))
    os.close(writer)
    assert result.code == (128 + signal.SIGPIPE if "stdout" in streams else 0)
    assert result.err == ""
    done(call("verify", tmp_path / "new.mr"))


@pytest.mark.parametrize("closed", [(2,), (1,), (0, 1, 2)])
def test_streams_that_are_closed_from_the_start_are_no_error_and_never_the_file(tmp_path, closed):
    def close():
        for fd in closed:
            os.close(fd)

    result = run("save", tmp_path / "new.mr", "--guest", "dense,size=1MiB", "--debug", preexec_fn=close)
    assert result.code == 0
    done(call("verify", tmp_path / "new.mr"))
    assert run("verify", tmp_path / "no.mr", preexec_fn=close).code == 2


def test_a_full_device_as_standard_output_is_an_error_of_the_host(tmp_path):
    with open("/dev/full", "w") as full:
        result = run("save", tmp_path / "new.mr", "--guest", "zero,size=4K", stdout=full)
        refused(result, 5, "cannot write to stdout: no space left on device\n", "")
        for argv in (["caps"], ["--help"], ["--version"], []):
            for unbuffered in ("", "1"):
                result = run(*argv, stdout=full, env={"PYTHONUNBUFFERED": unbuffered})
                refused(result, 5, "cannot write to stdout: no space left on device\n", "")
    done(call("verify", tmp_path / "new.mr"))


def on_a_terminal(seconds, *argv):
    """Exit code, stdout, and what a terminal showed that was stderr."""
    ours, theirs = pty.openpty()
    python = ("-c", BAR_AFTER.format(seconds))
    with Running(*argv, python=python, stderr=theirs, env={"TERM": "xterm", "COLUMNS": "100"}) as running:
        os.close(theirs)
        shown = b""
        try:
            while data := os.read(ours, 1 << 16):
                shown += data
        except OSError:  # EIO: the other end is closed
            pass
        os.close(ours)
        result = running.finish()
    return result.code, result.out, shown.decode()


def test_what_takes_long_shows_a_bar_on_a_terminal_and_wipes_it_off(tmp_path):
    code, out, shown = on_a_terminal(-1.0, "save", tmp_path / "new.mr", "--guest", "dense,size=16MiB", "--json")
    assert (code, out[0], out[-2:]) == (0, "{", "}\n")
    assert "write" in shown
    assert "16.0 MiB of 16.0 MiB" in shown
    assert "sync" in shown
    assert "\x1b[?25l" in shown  # the cursor is hidden,
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")  # and comes back
    for argv, phase in (
        (["verify", tmp_path / "new.mr"], "digests"),
        (["restore", tmp_path / "new.mr", "--ram", f"pc.ram={tmp_path / 'ram'}"], "restore"),
        (["diff", tmp_path / "new.mr", tmp_path / "new.mr"], "diff"),
    ):
        code, _, shown = on_a_terminal(-1.0, *argv)
        assert (code, phase in shown) == (0, True)


def test_what_takes_less_than_a_second_shows_no_bar(tmp_path):
    assert command_progress.PROGRESS_AFTER_SECONDS == 1.0
    code, _, shown = on_a_terminal(3600.0, "save", tmp_path / "new.mr", "--guest", "dense,size=16MiB")
    assert (code, shown) == (0, "")


def test_without_a_terminal_there_is_never_a_bar(tmp_path):
    python = ("-c", BAR_AFTER.format(-1.0))
    result = run("save", tmp_path / "new.mr", "--guest", "dense,size=16MiB", python=python)
    assert (result.code, result.err) == (0, "")


def test_a_signal_while_the_bar_is_shown_gives_the_cursor_back(tmp_path):
    ours, theirs = pty.openpty()
    options = {"stderr": theirs, "env": {"TERM": "xterm"}, "bar_after": -1.0}
    argv = ["--guest", "dense,size=4MiB"]
    with unchanged(tmp_path), Held("save", tmp_path / "new.mr", *argv, **options) as running:
        os.close(theirs)
        running.one_shard()  # the bar is shown when it is acknowledged, and then comes the next one
        running.send(signal.SIGINT)
        shown = b""
        try:
            while data := os.read(ours, 1 << 16):
                shown += data
        except OSError:
            pass
        os.close(ours)
        assert running.finish().code == 130
    assert shown.endswith(b"parallel-fixedram: error: interrupted by SIGINT\r\n")
    assert shown.count(b"\x1b[?25l") == shown.count(b"\x1b[?25h")


class GoneTerminal(io.StringIO):
    """A terminal whose window was closed."""

    def isatty(self):
        return True

    def write(self, text):
        raise OSError(5, "Input/output error")


def test_a_terminal_that_goes_away_does_not_end_a_save(terminal):
    terminal("stderr", shown=GoneTerminal())
    seconds = itertools.count(step=command_progress.PROGRESS_AFTER_SECONDS)
    with command_progress.ProgressBar(lambda: next(seconds)) as progress:
        progress.phase("write", 3)
        for _ in range(3):
            progress.advanced(1)


def test_the_installed_program_is_the_same_command():
    program = os.path.join(os.path.dirname(sys.executable), "parallel-fixedram")
    if not os.path.exists(program):
        missing("the package is not installed as a program")
    answer = subprocess.run([program, "caps", "fixed-ram"], capture_output=True, text=True, check=False)
    assert (answer.returncode, answer.stdout) == (0, "accepted by profile fixed-ram: fixed-ram\n")


def test_a_restore_that_is_killed_leaves_no_file_under_the_name_of_the_ram(tmp_path):
    done(call("save", tmp_path / "f.mr", "--guest", "dense,size=4MiB"))
    with Held("restore", tmp_path / "f.mr", "--ram", f"pc.ram={tmp_path / 'ram'}") as held:
        held.one_shard()
        held.send(signal.SIGKILL)
        assert held.finish().code == -signal.SIGKILL
    assert not (tmp_path / "ram").exists()
    done(call("restore", tmp_path / "f.mr", "--ram", f"pc.ram={tmp_path / 'ram'}"))  # what is left is in nobody's way
    assert sorted(os.listdir(tmp_path)) == ["f.mr", "ram"]


_SIGNAL_WHERE = """
import os, signal, sys
from parallel_fixedram.cli import caps, main

class Dropped:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        os.getpid()  # by now the handler has run

def dropping(_args):
    Dropped()
    while True:
        signal.pause()

def turning_into_another(_args):
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        os.getpid()
    except BaseException:
        pass
    raise ImportError("numpy has its own idea of what went wrong")

caps.run = {where}
sys.exit(main.main())
"""


@pytest.mark.parametrize("where", ["dropping", "turning_into_another"])
def test_a_signal_whose_exception_is_dropped_ends_the_command_all_the_same(where):
    """As an exception inside importlib's callbacks and numpy's initialisation is."""
    result = run("caps", python=("-c", _SIGNAL_WHERE.format(where=where)))
    refused(result, 143, "error: interrupted by SIGTERM\n", "")
