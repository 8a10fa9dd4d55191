"""The capability gate and the seekable transport, as the command enforces them: before anything is touched."""

import os

import pytest
from support.cli import Running, call, done, refused, run, untouched
from support.pictures import content

GUEST = "dense,size=1MiB"
NEVER = "dense,size=1EiB"
"""A guest that no host can boot: whoever tries says so."""

MULTIFD = "Fixed-ram migration is incompatible with multifd\n"
SEEKABLE = "Migration requires seekable transport (e.g. file)\n"


REFUSALS = {
    "channels": (["--channels", "2"], MULTIFD),
    "multifd": (["--cap", "multifd=on"], MULTIFD),
    "multifd by name alone": (["--cap", "multifd"], MULTIFD),
    "multifd is off but needed": (
        ["--channels", "2", "--cap", "multifd=off", "--experimental-multifd"],
        "capability multifd is off, but 2 channels need it\n",
    ),
    "xbzrle": (["--cap", "xbzrle"], "Fixed-ram migration is incompatible with xbzrle\n"),
    "xbzrle whatever the flag": (
        ["--cap", "xbzrle", "--experimental-multifd"],
        "Fixed-ram migration is incompatible with xbzrle\n",
    ),
    "compress": (["--cap", "compress"], "Fixed-ram migration is incompatible with compression\n"),
    "postcopy": (["--cap", "postcopy-ram"], "Fixed-ram migration is incompatible with postcopy ram\n"),
    "ignore-shared": (
        ["--cap", "x-ignore-shared"],
        "capability x-ignore-shared leaves shared RAM out, which is what a save is for\n",
    ),
    "no fixed-ram": (["--cap", "fixed-ram=off"], "capability fixed-ram is off, but the file needs it\n"),
    "no fixed-ram by its other name": (
        ["--cap", "mapped-ram=off"],
        "capability fixed-ram is off, but the file needs it\n",
    ),
    "zero copy": (
        ["--cap", "zero-copy-send"],
        "Zero copy only available for non-compressed non-TLS multifd migration\n",
    ),
    "xbzrle of QEMU 10.0": (
        ["--cap", "xbzrle", "--profile", "qemu-10.0"],
        "Mapped-ram migration is incompatible with xbzrle\n",
    ),
    "what QEMU 10.0 has no more": (
        ["--cap", "compress", "--profile", "qemu-10.0"],
        "Parameter 'capability' does not accept value 'compress'\n",
    ),
}


@pytest.mark.parametrize(("argv", "message"), REFUSALS.values(), ids=REFUSALS)
def test_the_gate_refuses_before_a_guest_boots_or_a_file_is_begun(tmp_path, argv, message):
    """Neither could be: what is in the way of it is told only where the gate has nothing to say."""
    (tmp_path / "old.mr").write_bytes(b"old")
    for more in (["--guest", NEVER], ["--ram", "a=nowhere"], ["--guest", NEVER, "--overwrite"]):
        with untouched(tmp_path):
            refused(call("save", tmp_path / "old.mr", *more, *argv), 2, message)
            if "--overwrite" not in more:
                refused(call("plan", tmp_path / "old.mr", *more, *argv), 2, message)


@pytest.mark.parametrize("verb", ["save", "plan"])
@pytest.mark.parametrize(
    ("argv", "message"),
    [each for each in REFUSALS.values() if not {"--channels", "multifd", "multifd=on"} & {*each[0]}],
)
def test_channels_that_are_left_open_lift_no_rule(tmp_path, verb, argv, message):
    (tmp_path / "old.mr").write_bytes(b"old")
    with untouched(tmp_path):
        refused(call(verb, tmp_path / "old.mr", "--guest", NEVER, "--channels", "auto", *argv), 2, message)


@pytest.mark.parametrize(
    ("argv", "forbids"),
    [
        ([], "Fixed-ram migration is incompatible with multifd"),
        (["--experimental-multifd", "--cap", "multifd=off"], "capability multifd is off, but 2 channels need it"),
    ],
)
def test_channels_that_are_left_open_are_one_where_more_are_refused(tmp_path, argv, forbids):
    result = done(call("save", tmp_path / "new.mr", "--guest", GUEST, "--channels", "auto", *argv))
    assert "  how       1 channel, " in result.out
    assert f"  because   1 channel: more is multifd: {forbids}\n" in result.out
    report = done(call("save", tmp_path / "b.mr", "--guest", GUEST, "--channels", "auto", "--json", *argv)).json
    assert (report["channels"], report["capabilities"].get("multifd", False)) == (1, False)


def test_the_real_command_refuses_channels_without_the_flag_and_names_it(tmp_path):
    with untouched(tmp_path):
        result = run("save", tmp_path / "new.mr", "--guest", NEVER, "--channels", "4")
        refused(result, 2, f"error: {MULTIFD}", "--experimental-multifd")
        refused(
            run("save", tmp_path / "new.mr", "--guest", NEVER, "--cap", "x-ignore-shared"), 2, "leaves shared RAM out"
        )


@pytest.mark.parametrize(
    ("argv", "capabilities"),
    [
        ([], {"fixed-ram": True}),
        (["--cap", "events=on", "--cap", "xbzrle=off"], {"events": True, "fixed-ram": True, "xbzrle": False}),
        (["--cap", "xbzrle", "--cap", "xbzrle=off"], {"fixed-ram": True, "xbzrle": False}),
        (["--cap", "mapped-ram"], {"fixed-ram": True}),
        (["--cap", "fixed-ram=on", "--profile", "qemu-10.0"], {"mapped-ram": True}),
        (["--channels", "2", "--experimental-multifd"], {"fixed-ram": True, "multifd": True}),
        (["--cap", "multifd", "--experimental-multifd"], {"fixed-ram": True, "multifd": True}),
        (["--channels", "3", "--profile", "qemu-10.0"], {"mapped-ram": True, "multifd": True}),
    ],
)
def test_what_the_gate_lets_pass_is_in_the_report(tmp_path, argv, capabilities):
    result = done(call("save", tmp_path / "new.mr", "--guest", GUEST, "--json", *argv))
    assert result.json["capabilities"] == capabilities
    assert done(call("inspect", tmp_path / "new.mr", "--json")).json["capabilities"] == ["mapped-ram"]
    done(call("verify", tmp_path / "new.mr"))


@pytest.mark.parametrize(
    "uri", ["tcp:localhost:4444", "unix:/tmp/s", "exec:cat > new.mr", "fd:1", "vsock:2:3", "rdma:h:1"]
)
def test_a_uri_that_cannot_seek_is_refused_in_qemus_words(tmp_path, monkeypatch, uri):
    monkeypatch.chdir(tmp_path)
    with untouched(tmp_path):
        refused(call("save", uri, "--guest", NEVER), 2, f"error: {SEEKABLE}")
        refused(call("plan", uri, "--guest", NEVER), 2, f"error: {SEEKABLE}")
        refused(call("restore", uri, "--ram", "a=b"), 2, f"error: {SEEKABLE}")
        refused(call("inspect", uri), 2, f"error: {SEEKABLE}")


@pytest.mark.parametrize("more", [[], ["--overwrite"]])
def test_a_pipe_in_the_file_system_is_refused_by_trying_it(tmp_path, more):
    os.mkfifo(tmp_path / "fifo")
    with untouched(tmp_path):
        for uri in (tmp_path / "fifo", f"file:{tmp_path / 'fifo'}"):
            refused(call("save", uri, "--guest", NEVER, *more), 2, SEEKABLE, "a fixed offset needs a regular file")


def test_a_pipe_with_a_reader_gets_not_a_byte(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    reader = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    refused(run("save", tmp_path / "fifo", "--guest", NEVER, "--overwrite"), 2, SEEKABLE)
    assert os.read(reader, 1) == b""
    os.close(reader)


@pytest.mark.parametrize("path", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
def test_standard_output_that_is_a_pipe_is_refused(path):
    refused(run("save", path, "--guest", NEVER, "--overwrite"), 2, SEEKABLE, f"{path!r} cannot seek")


def test_an_inherited_pipe_is_refused():
    reader, writer = os.pipe()
    for fd in (reader, writer):
        with Running("save", f"/proc/self/fd/{fd}", "--guest", NEVER, pass_fds=(reader, writer)) as running:
            refused(running.finish(), 2, SEEKABLE)
    os.close(writer)
    assert os.read(reader, 1) == b""
    os.close(reader)


def test_standard_output_that_is_a_regular_file_exists_and_cannot_take_a_new_name(tmp_path):
    with (tmp_path / "out").open("w") as out:
        refused(run("save", "/dev/stdout", "--guest", NEVER, stdout=out), 2, "'/dev/stdout' exists\n")
    assert (tmp_path / "out").read_bytes() == b""


@pytest.fixture
def saved(tmp_path):
    (tmp_path / "ram").write_bytes(content("AB0c"))
    done(call("save", tmp_path / "ours.mr", "--ram", f"ram={tmp_path / 'ram'}"))
    return tmp_path


RECORDED = {
    "fixed-ram is off": (["--cap", "fixed-ram=off"], "Capability fixed-ram is off, but received capability is on\n"),
    "its other name is off": (
        ["--cap", "mapped-ram=off"],
        "Capability fixed-ram is off, but received capability is on\n",
    ),
    "as QEMU 10.0 says it": (
        ["--cap", "fixed-ram=off", "--profile", "qemu-10.0"],
        "Capability mapped-ram is off, but received capability is on\n",
    ),
    "one that the file has not": (
        ["--cap", "x-ignore-shared"],
        "Capability x-ignore-shared is on, but received capability is off\n",
    ),
    "channels": (["--channels", "2"], MULTIFD),
    "xbzrle": (["--cap", "xbzrle"], "Fixed-ram migration is incompatible with xbzrle\n"),
}


@pytest.mark.parametrize(("argv", "message"), RECORDED.values(), ids=RECORDED)
def test_a_restore_with_other_capabilities_than_recorded_touches_nothing(saved, argv, message):
    for destination in ("new", "ram"):
        with untouched(saved):
            refused(call("restore", saved / "ours.mr", "--ram", f"ram={saved / destination}", *argv), 2, message)


def test_the_real_command_validates_what_the_file_records(saved):
    with untouched(saved):
        result = run("restore", saved / "ours.mr", "--ram", f"ram={saved / 'new'}", "--cap", "fixed-ram=off")
        refused(
            result,
            2,
            "error: Capability fixed-ram is off, but received capability is on\n",
            "--cap fixed-ram switches it on\n",
        )


@pytest.mark.parametrize("argv", [["--cap", "events"], ["--profile", "qemu-10.0"], ["--cap", "mapped-ram=on"]])
def test_a_restore_does_not_mind_capabilities_that_leave_the_format_alone(saved, argv):
    done(call("restore", saved / "ours.mr", "--ram", f"ram={saved / 'new'}", *argv))
    assert (saved / "new").read_bytes() == content("AB0c")
