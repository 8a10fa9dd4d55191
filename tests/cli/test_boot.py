"""``restore`` and ``clone`` with a QEMU command line after ``--``: what is refused before any QEMU is looked for."""

import json
import sys
from argparse import Namespace

import pytest
from support.cli import call, done, refused, unchanged
from support.streamwriter import Block, stream

from parallel_fixedram.boot.incoming import IncomingStream
from parallel_fixedram.boot.plan import Boot
from parallel_fixedram.cli import boot
from parallel_fixedram.core.errors import HostError
from parallel_fixedram.core.reports.boot import BootReport, BootSeconds, GuestReport


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with ``ram.mr``, a file without device state."""
    monkeypatch.chdir(tmp_path)
    done(call("save", "ram.mr", "--guest", "dense,size=1MiB"))
    return tmp_path


FIRMWARE = Block(name="bios", picture="B.")
CLONE, RESTORE = ["clone", "ram.mr"], ["restore", "ram.mr"]
QEMU = ["--", "qemu", "-m", "1M"]
WRONG = {
    "clone without a command line": (CLONE, "a QEMU command line is needed after --\n", "clone --help"),
    "clone of nothing": (["clone"], "the following arguments are required: FILE\n", "clone --help"),
    "clone of nothing with a command line": (["clone", *QEMU], "the following arguments are required: FILE\n", None),
    "restore of nothing with a command line": (["restore", *QEMU], "are required: FILE\n", "restore --help"),
    "clone with an empty command line": ([*CLONE, "--"], "the QEMU command line is empty, expected a program", ""),
    "restore with an empty command line": ([*RESTORE, "--"], "the QEMU command line is empty, expected a program", ""),
    "restore with an empty command line, and RAM": (
        [*RESTORE, "--ram", "pc.ram=new", "--"],
        "the QEMU command line is empty, expected a program",
        "",
    ),
    "clone with a command line before --": (
        [*CLONE, "qemu"],
        "unrecognized arguments: qemu\n",
        "a QEMU command line comes after --; see parallel-fixedram clone --help",
    ),
    "clone with options of QEMU before --": ([*CLONE, "-m", "1G", *QEMU], "unrecognized arguments: -m 1G\n", None),
    "no clone": ([*CLONE, "--count", "0", *QEMU], "0 clones, at least 1 is needed\n", ""),
    "fewer than no clone": ([*CLONE, "--count", "-3", *QEMU], "-3 clones, at least 1 is needed\n", ""),
    "clones that are no number": (
        [*CLONE, "--count", "two", *QEMU],
        "argument --count: invalid int value: 'two'\n",
        None,
    ),
    "clones into shared memory": ([*CLONE, "--shared", *QEMU], "unrecognized arguments: --shared\n", None),
    "clones by many channels": ([*CLONE, "--channels", "2", *QEMU], "unrecognized arguments: --channels 2\n", None),
    "print and punch": (
        [*CLONE, "--print", "--punch", *QEMU],
        "--print cannot be combined with --punch or --add-clone-stream: it changes nothing\n",
        "",
    ),
    "print and add": (
        [*CLONE, "--print", "--add-clone-stream", *QEMU],
        "--print cannot be combined with --punch or --add-clone-stream: it changes nothing\n",
        "",
    ),
    "print and a command inside": (
        [*CLONE, "--print", "--run-in-clone", "x", *QEMU],
        "--print cannot be combined with --run-in-clone: it starts nothing\n",
        "",
    ),
    "another identity": ([*CLONE, "--identity", "other", *QEMU], "argument --identity: invalid choice: 'other'", None),
    "identity of a restore": ([*RESTORE, "--identity", "new", *QEMU], "unrecognized arguments: --identity new\n", None),
    "a command inside without an agent": (
        [*CLONE, "--run-in-clone", "x", *QEMU],
        "a command cannot be run in clones: the command line has no guest agent on a socket\n",
        "-device virtserialport,chardev=qga0,name=org.qemu.guest_agent.0",
    ),
    "a command inside of what is paused": (
        [*CLONE, "--run-in-clone", "x", "--paused", *QEMU],
        "clones that do not run cannot run a command\n",
        "",
    ),
    "a device that is not clear": ([*CLONE, *QEMU, "-device", "{"], "a QEMU -device is not JSON: ", ""),
    "print and verify": ([*RESTORE, "--print", "--verify", *QEMU], "--print cannot be combined with --verify", None),
    "print of anonymous memory": (
        [*RESTORE, "--print", "--shared", *QEMU],
        "only a running command can fill anonymous",
        None,
    ),
    "shared without a command line": ([*RESTORE, "--shared"], "--shared needs a QEMU command line after --\n", ""),
    "paused without a command line": ([*RESTORE, "--paused"], "--paused needs a QEMU command line after --\n", ""),
    "print without a command line": ([*RESTORE, "--print"], "--print needs a QEMU command line after --\n", ""),
    "a run folder that is none": ([*CLONE, "--run-dir", "-", *QEMU], "argument --run-dir: '-' is not a file", None),
    "a run folder without a command line": (
        [*RESTORE, "--ram", "pc.ram=new", "--run-dir", "run"],
        "--run-dir needs a QEMU command line after --\n",
        "",
    ),
    "a part of a file as shared memory": (
        [*RESTORE, "--ram", "pc.ram=new,offset=4K", *QEMU],
        "with a QEMU command line --ram takes whole files, without offset and size\n",
        "",
    ),
    "a file of some size as shared memory": (
        [*RESTORE, "--ram", "pc.ram=new,size=1M", *QEMU],
        "with a QEMU command line --ram takes whole files, without offset and size\n",
        "",
    ),
    "a block given two files": (
        [*RESTORE, "--ram", "pc.ram=a", "--ram", "pc.ram=b", *QEMU],
        "a block is given two files\n",
        "",
    ),
    "a restore of RAM alone": (
        [*RESTORE, *QEMU],
        "'ram.mr' has no device state, so no guest can",
        "made from RAM alone",
    ),
    "a clone of RAM alone": ([*CLONE, *QEMU], "'ram.mr' has no device state, so no guest can", "made from RAM alone"),
    "a printed clone of RAM alone": ([*CLONE, "--print", *QEMU], "'ram.mr' has no device state", None),
    "channels without the flag": ([*RESTORE, "--channels", "2", *QEMU], "", "--experimental-multifd"),
    "channels without the flag, printed": (
        [*RESTORE, "--print", "--channels", "2", *QEMU],
        "",
        "--experimental-multifd",
    ),
    "an option without its value": ([*RESTORE, "--", "qemu", "-m"], "QEMU's option '-m' has no value\n", ""),
    "an own -incoming": (
        [*CLONE, *QEMU, "-incoming", "defer"],
        "QEMU's option -incoming is not allowed here: the guest",
        "",
    ),
    "an own -daemonize": (
        [*RESTORE, *QEMU, "--daemonize"],
        "QEMU's option -daemonize is not allowed here: leave it out",
        "",
    ),
    "a backend without an id": ([*CLONE, *QEMU, "-object", "memory-backend-ram,size=1M"], "has no id\n", ""),
}


@pytest.mark.parametrize(("argv", "message", "hint"), WRONG.values(), ids=WRONG)
def test_what_makes_no_sense_is_a_usage_error(folder, argv, message, hint):
    with unchanged(folder):
        refused(call(*argv), 2, message, hint)


@pytest.mark.parametrize("verb", ["restore", "clone"])
def test_a_file_that_is_not_there_is_its_callers_to_mend(folder, verb):
    with unchanged(folder):
        refused(call(verb, "nowhere", *QEMU), 2, "cannot open 'nowhere': no such file or directory\n", "")


@pytest.mark.parametrize("verb", ["restore", "clone"])
def test_what_is_no_migration_file_is_said_to_be_none(folder, verb):
    (folder / "noise").write_bytes(b"noise" * 1000)
    with unchanged(folder):
        refused(call(verb, "noise", *QEMU), 3, "'noise' at 0x0: not a migration stream: expected the magic 'QEVM'\n")


def test_what_stands_behind_the_dashes_is_none_of_our_options(folder):
    """Not even --help, --json and --debug, and not another pair of dashes."""
    for options in (["--help"], ["--json", "x"], ["--debug", "x"], ["--", "clone"], ["--no-such-option", "x"]):
        refused(call("clone", "ram.mr", "--", "qemu", *options), 2, "has no device state", None)
    assert done(call("clone", "--help", *QEMU)).out.startswith("usage: parallel-fixedram clone FILE")


def test_options_of_the_command_stand_before_the_verb_too(folder):
    result = call("--debug", "clone", "ram.mr", *QEMU)
    assert (result.code, result.err.splitlines()[-2].partition(": ")[2]) == (
        2,
        "error: 'ram.mr' has no device state, so no guest can be started from it",
    )


def test_other_verbs_take_dashes_as_ever(folder):
    """What follows them is no option, but an argument like any other."""
    done(call("verify", "--", "ram.mr"))
    done(call("diff", "ram.mr", "--", "ram.mr"))
    (folder / "--odd").write_bytes((folder / "ram.mr").read_bytes())
    done(call("verify", "--", "--odd"))
    refused(call("save", "new.mr", "--guest", "dense,size=1MiB", "--", "x"), 2, "unrecognized arguments: ", None)
    refused(call("verify", "clone", "--", "ram.mr"), 2, "unrecognized arguments: ", None)


@pytest.mark.parametrize(
    ("verb", "usage"),
    [
        ("clone", ["usage: parallel-fixedram clone FILE [options] -- QEMU [argument ...]"]),
        (
            "restore",
            [
                "usage: parallel-fixedram restore FILE [options] -- QEMU [argument ...]",
                "       parallel-fixedram restore FILE [options] --ram IDSTR=PATH ...",
            ],
        ),
    ],
)
def test_the_usage_shows_where_the_command_line_of_qemu_stands(verb, usage):
    lines = done(call(verb, "--help")).out.splitlines()
    assert lines[: len(usage) + 1] == [*usage, ""]


def test_guests_that_run_are_named_even_if_the_report_cannot_be_printed(monkeypatch):
    guest = GuestReport(name="vm/0", pid=77, qmp="/run/0/qmp", log="/run/0/log", status="running")
    report = BootReport(
        verb="clone",
        file="vm.mr",
        how="",
        channels=1,
        direct_io=False,
        guests=(guest,),
        changes=(),
        verified=False,
        seconds=BootSeconds(total=0.0, fill=0.0, start=0.0, load=0.0),
    )
    for as_json in (True, False):
        full = open("/dev/full", "w")  # noqa: SIM115 (what it still holds cannot be written)
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", full)
            with pytest.raises(HostError, match="cannot write to stdout: no space left") as raised:
                boot.show(Namespace(json=as_json), report)
        with pytest.raises(OSError, match="No space left"):
            full.close()
        assert raised.value.hint == (
            "guest 0: running, pid 77, QMP socket /run/0/qmp; to end: parallel-fixedram guests stop vm"
        )


@pytest.mark.parametrize(
    ("state", "paused", "told"),
    [("running", False, True), ("paused", False, True), ("", False, True), ("running", True, False)]
    + [(state, False, False) for state in ("shutdown", "guest-panicked", "io-error", "internal-error", "watchdog")],
)
def test_a_printed_plan_tells_only_a_guest_to_run_that_would(capsys, state, paused, told):
    plan = Boot(commands=[["qemu"]], source=IncomingStream(path="/vm.mr"), state=state, paused=paused)
    boot.show_plan(Namespace(json=False, verb="restore"), plan)
    text = capsys.readouterr().out
    boot.show_plan(Namespace(json=True, verb="restore"), plan)
    requests = [each["execute"] for each in json.loads(capsys.readouterr().out)["qmp"]]
    assert ('{"execute": "cont"}' in text, "cont" in requests, "; cont when" in text) == (told, told, told)
    assert (f"# no cont: the guest was saved in the state {state!r}" in text) == (not told and not paused)


@pytest.mark.parametrize("more", [[], ["--cap", "x-ignore-shared"]])
@pytest.mark.parametrize("argv", [["restore", "shared.mr", "--ram", "m=new"], ["restore", "shared.mr", *QEMU]])
def test_memory_that_a_file_was_saved_without_is_no_matter_of_capabilities(folder, argv, more):
    (folder / "shared.mr").write_bytes(
        stream(Block(name="m", absent=True), FIRMWARE, capabilities=("x-ignore-shared", "mapped-ram")).data
    )
    with unchanged(folder):
        refused(
            call(*argv[:2], *more, *argv[2:]), 2, "does not contain block 'm', only its name", "a stock QEMU with that"
        )


def test_a_file_that_was_saved_with_x_ignore_shared_and_is_whole_needs_the_capability(folder):
    (folder / "whole.mr").write_bytes(stream(FIRMWARE, capabilities=("x-ignore-shared", "mapped-ram")).data)
    argv = ["restore", "whole.mr", "--ram", f"bios={folder / 'new'}"]
    refused(call(*argv), 2, "received capability is on\n", "--cap x-ignore-shared switches it on")
    done(call(*argv, "--cap", "x-ignore-shared"))
