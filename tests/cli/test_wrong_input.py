"""What is asked wrongly, or cannot be done here: one line, one exit code, and everything as it was before."""

import fcntl
import os
import socket
import struct

import pytest
from support.cli import (
    call,
    done,
    file_size_limit,
    part_of,
    refused,
    remount,
    run,
    tmpfs,
    unchanged,
    untouched,
    without_override,
)
from support.pictures import PAGE, content

GUEST = "dense,size=1MiB"
PICTURE = "AB-c0D"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with a file ``old.mr``, its RAM ``ram``, and things that are neither."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ram").write_bytes(content(PICTURE))
    (tmp_path / "odd").write_bytes(bytes(PAGE + 1))
    (tmp_path / "empty").touch()
    (tmp_path / "noise").write_bytes(os.urandom(3 * PAGE))
    (tmp_path / "sub").mkdir()
    os.mkfifo(tmp_path / "fifo")
    done(call("save", tmp_path / "old.mr", "--ram", f"ram={tmp_path / 'ram'}"))
    return tmp_path


SAVES = {
    "no source": ([], "one source is needed: --guest SPEC, --qmp SOCKET, --libvirt DOMAIN or --ram IDSTR=PATH\n"),
    "a libvirt without a domain": (["--guest", GUEST, "--connect", "qemu:///system"], "--connect is for --libvirt\n"),
    "a domain elsewhere": (["--libvirt", "vm", "--connect", "qemu+ssh://host/system"], "leads to another host"),
    "two sources": (["--guest", GUEST, "--ram", "a=ram"], "exactly one source is needed"),
    "RAM without a path": (["--ram", "a"], "'a': expected IDSTR=PATH[,offset=N][,size=N]\n"),
    "RAM with an empty path": (["--ram", "a="], "'a=': the path is empty\n"),
    "RAM without a name": (["--ram", "=ram"], "'=ram': expected IDSTR=PATH"),
    "RAM is standard input": (["--ram", "a=-"], "'a=-': '-' is not a file; for a file of that name write ./-\n"),
    "a trace to standard output": (["--guest", GUEST, "--trace", "-"], "argument --trace: '-' is not a file"),
    "RAM is a folder": (["--ram", "a=sub"], "guest RAM 'sub' is not a regular file\n"),
    "RAM is a pipe": (["--ram", "a=fifo"], "guest RAM 'fifo' is not a regular file\n"),
    "RAM is empty": (["--ram", "a=empty"], "guest RAM 'empty' has 0 bytes, asked for 0 at 0\n"),
    "half a page": (["--ram", "a=odd"], "guest RAM 'odd': size 4097 is not a multiple of the page size 4096\n"),
    "half a page by size": (["--ram", "a=ram,size=6K"], "size 6144 is not a multiple of the page size 4096\n"),
    "half a page by offset": (
        ["--ram", "a=ram,offset=2K"],
        "offset 2048 of guest RAM 'ram' is not a multiple of 4096\n",
    ),
    "size beyond the end": (["--ram", "a=ram,size=1M"], "guest RAM 'ram' has 24576 bytes, asked for 1048576 at 0\n"),
    "offset beyond the end": (
        ["--ram", "a=ram,offset=1M"],
        "guest RAM 'ram' has 24576 bytes, asked for 0 at 1048576\n",
    ),
    "size that is none": (["--ram", "a=ram,size=-1"], "'a=ram,size=-1': not a size: '-1'"),
    "size given twice": (["--ram", "a=ram,size=4K,size=8K"], "'a=ram,size=4K,size=8K': size is given twice\n"),
    "two blocks of one name": (["--ram", "a=ram", "--ram", "a=noise"], "two blocks are named 'a'\n"),
    "name of 256 bytes": (
        ["--ram", f"{'n' * 256}=ram"],
        "block name 'nnnnnnnnnnnnnnnn'... is 256 characters long, at most 255",
    ),
    "name beyond ASCII": (["--ram", "é=ram"], "block name 'é' is not printable ASCII\n"),
    "name of two lines": (["--ram", "a\nb=ram"], "block name 'a\\nb' is not printable ASCII\n"),
    "rounds without a dirty log": (
        ["--ram", "a=ram", "--capture", "rounds"],
        "a save in rounds needs a dirty log",
    ),
    "a number of rounds without rounds": (
        ["--guest", GUEST, "--max-rounds", "2"],
        "--max-rounds is for --capture rounds\n",
    ),
    "no round": (["--guest", GUEST, "--capture", "rounds", "--max-rounds", "0"], "0 rounds, at least 1 is needed\n"),
    "unknown workload": (["--guest", "busy"], "unknown guest workload 'busy', expected one of zero, dense,"),
    "unknown guest key": (["--guest", "dense,ram=1G"], "unknown guest key 'ram', expected one of size, seed,"),
    "guest of half a page": (
        ["--guest", "dense,size=6K"],
        "guest size must be a positive multiple of 4096 bytes, got 6144\n",
    ),
    "no channel": (
        ["--guest", GUEST, "--channels", "0"],
        "Parameter 'multifd_channels' expects a value between 1 and 255\n",
    ),
    "10,000 channels": (["--guest", GUEST, "--channels", "10000"], "expects a value between 1 and 255\n"),
    "channels that are no number": (
        ["--guest", GUEST, "--channels", "two"],
        "argument --channels: 'two': expected a number or auto\n",
    ),
    "a gap that is no number": (
        ["--guest", GUEST, "--gap-pages", "x"],
        "argument --gap-pages: 'x': expected a number or auto\n",
    ),
    "less than no gap": (["--guest", GUEST, "--gap-pages", "-1"], "-1 gap pages, at least 0 is needed\n"),
    "a shard that is no number": (
        ["--guest", GUEST, "--shard-pages", "1.5"],
        "argument --shard-pages: '1.5': expected a number or auto\n",
    ),
    "a shard of nothing": (["--guest", GUEST, "--shard-pages", "0"], "0 shard pages, at least 1 is needed\n"),
    "unknown capture": (["--guest", GUEST, "--capture", "live"], "argument --capture: invalid choice: 'live'"),
    "unknown cache": (["--guest", GUEST, "--cache", "some"], "argument --cache: invalid choice: 'some'"),
    "a trace in the place of the file": (
        ["--guest", GUEST, "--trace", "./new.mr"],
        "--trace './new.mr' would replace the file that is saved\n",
    ),
    "unknown option": (["--guest", GUEST, "--fast"], "unrecognized arguments: --fast\n"),
    "option of two lines": (["--guest", GUEST, "--fa\nst"], "unrecognized arguments: --fa\\nst\n"),
    "a third word": (["--guest", GUEST, "more"], "unrecognized arguments: more\n"),
    "unknown choice": (["--guest", GUEST, "--direct-io", "maybe"], "argument --direct-io: invalid choice: 'maybe'"),
    "unknown profile": (
        ["--guest", GUEST, "--profile", "8.2"],
        "argument --profile: invalid choice: '8.2' (choose from ",  # quoted only by Python before 3.12.8
    ),
    "unknown capability": (["--guest", GUEST, "--cap", "no=on"], "Parameter 'capability' does not accept value 'no'\n"),
    "capability neither on nor off": (["--guest", GUEST, "--cap", "events=1"], "expected NAME, NAME=on or NAME=off\n"),
}


@pytest.mark.parametrize(("argv", "message"), SAVES.values(), ids=SAVES)
def test_a_save_that_makes_no_sense_is_a_usage_error(folder, argv, message):
    with unchanged(folder):
        refused(call("save", "new.mr", *argv), 2, message)


PLANS = {name: each for name, each in SAVES.items() if not {"--cache", "--trace"} & {*each[0]}}


@pytest.mark.parametrize(("argv", "message"), PLANS.values(), ids=PLANS)
def test_a_plan_for_a_save_that_makes_no_sense_is_the_same_error(folder, argv, message):
    with untouched(folder):
        refused(call("plan", "new.mr", *argv), 2, message)


TARGETS = {
    "an empty name": ("", 2, "the name of the file is empty\n"),
    "a folder": ("sub", 2, "'sub' is a folder\n"),
    "a name that ends in a slash": ("new/", 2, "'new/' does not name a file\n"),
    "a device": ("/dev/full", 2, "'/dev/full' is not a regular file\n"),
    "an unknown protocol": ("http:new", 2, "unknown migration protocol: http:new\n"),
    "a bad offset": ("file:new.mr,offset=2x", 2, "file URI has bad offset 2x: Invalid argument\n"),
    "standard output": ("-", 2, "'-' is not a file: standard input and output cannot seek\n"),
    "a missing folder": ("no/new.mr", 2, "cannot open the folder 'no': no such file or directory\n"),
    "a file as a folder": ("ram/new.mr", 2, "cannot look at 'ram/new.mr': not a directory\n"),
    "a name that is too long": ("n" * 256, 2, "file name too long\n"),
    "a name that is too long while it is written": ("n" * 250, 2, "file name too long\n"),
}


@pytest.mark.parametrize(("file", "code", "message"), TARGETS.values(), ids=TARGETS)
def test_a_file_that_cannot_be_made_says_why(folder, file, code, message):
    with unchanged(folder):
        refused(call("save", file, "--guest", GUEST), code, message)


@pytest.mark.parametrize("file", ["old.mr", "./old.mr", "file:old.mr", "file:old.mr,offset=4K"])
def test_an_existing_file_stays_unless_it_may_be_overwritten(folder, file):
    with untouched(folder):
        refused(call("save", file, "--guest", GUEST), 2, "old.mr' exists\n", "--overwrite replaces it")


def test_a_symbolic_link_to_nowhere_counts_as_an_existing_file(folder):
    (folder / "link").symlink_to("nowhere")
    with untouched(folder):
        refused(call("save", "link", "--guest", GUEST), 2, "'link' exists\n", "--overwrite")


def test_missing_ram_names_the_path(folder):
    with unchanged(folder):
        refused(
            call("save", "new.mr", "--ram", "a=nowhere"),
            2,
            "cannot open guest RAM 'nowhere': no such file or directory\n",
            "",
        )


def test_unreadable_ram_names_the_path(folder):
    (folder / "secret").write_bytes(bytes(PAGE))
    (folder / "secret").chmod(0)
    result = run("save", "new.mr", "--ram", "a=secret", preexec_fn=without_override)
    refused(result, 5, "cannot open guest RAM 'secret': permission denied\n", "")
    assert not (folder / "new.mr").exists()


def test_a_folder_without_write_permission_takes_no_file(folder):
    (folder / "sub").chmod(0o500)
    with untouched(folder / "sub"):
        result = run("save", "sub/new.mr", "--guest", GUEST, preexec_fn=without_override)
        refused(result, 5, "cannot create 'sub/new.mr': permission denied\n", "")


def test_a_read_only_file_system_takes_no_file(tmp_path):
    with tmpfs(tmp_path / "small", "size=1m") as small:
        (small / "old.mr").write_bytes(b"old")
        remount(small, "ro")
        for target, more in (("new.mr", []), ("old.mr", ["--overwrite"])):
            with untouched(small):
                result = run("save", small / target, "--guest", GUEST, *more)
                refused(result, 5, f"cannot create '{small / target}': read-only file system\n", "")


@pytest.mark.parametrize("more", [[], ["--direct-io", "off"], ["--channels", "2", "--experimental-multifd"]])
def test_a_full_file_system_takes_no_file_and_keeps_the_old_one(tmp_path, more):
    with tmpfs(tmp_path / "small", "size=2m") as small:
        (small / "old.mr").write_bytes(b"old")
        for target in ("new.mr", "old.mr"):
            with unchanged(small):
                result = run("save", small / target, "--guest", "dense,size=4MiB", "--overwrite", *more)
                refused(result, 5, ": no space left on device\n")
        assert os.statvfs(small).f_bfree > 480  # of 512 blocks: the unfinished file takes no space any more


def test_a_full_file_system_is_no_place_to_restore_to(tmp_path):
    done(call("save", tmp_path / "big.mr", "--guest", "dense,size=4MiB"))
    with tmpfs(tmp_path / "small", "size=2m") as small, unchanged(small):
        result = run("restore", tmp_path / "big.mr", "--ram", f"pc.ram={small / 'ram'}")
        refused(result, 5, ": no space left on device\n")


@pytest.mark.parametrize("limit", [PAGE, 1 << 20, (1 << 20) + PAGE, 5 << 20])
def test_a_limit_on_the_size_of_files_is_an_error_and_no_signal(tmp_path, limit):
    with unchanged(tmp_path):
        result = run("save", tmp_path / "new.mr", "--guest", "dense,size=4MiB", preexec_fn=file_size_limit(limit))
        refused(result, 5, "file too large\n")


def test_a_guest_larger_than_memory_is_refused_before_it_hurts(folder):
    with untouched(folder):
        result = call("save", "new.mr", "--guest", "dense,size=1PiB")
        refused(result, 5, "the guest writes 1.0 PiB of RAM, but only", "give it a smaller size= or fraction=")


def test_every_way_to_fail_has_its_exit_code_and_leaves_nothing_behind(folder):
    """The cases of this file run inside the test; here is one of each kind in a process of its own."""
    with unchanged(folder):
        refused(run("verify", "--fast", cwd=folder), 2, "the following arguments are required: FILE\n")
        refused(run("save", "new.mr", "--ram", "a=odd", cwd=folder), 2, "is not a multiple of the page size 4096\n")
        refused(run("save", "old.mr", "--guest", GUEST, cwd=folder), 2, "'old.mr' exists\n")
        refused(run("verify", "noise", cwd=folder), 3, "not a migration stream")
        refused(run("save", "new.mr", "--ram", "a=nowhere", cwd=folder), 2, "no such file or directory\n")
        assert run("verify", "old.mr", "--ram", "ram=ram,size=24K", cwd=folder).code == 0


def test_a_folder_is_no_ram_to_restore_to(folder):
    with unchanged(folder):
        refused(call("restore", "old.mr", "--ram", "ram=sub"), 2, "'sub' is not a regular file\n")


USAGE = {
    "no verb": (["--debug"], "the following arguments are required: VERB\n"),
    "unknown verb": (["store"], "there is no verb 'store'\n"),
    "save without a file": (["save"], "the following arguments are required: FILE\n"),
    "restore without a file": (["restore"], "the following arguments are required: FILE\n"),
    "diff of one file": (["diff", "old.mr"], "the following arguments are required: B\n"),
    "demo of a size that is none": (["demo", "--size", "big"], "argument --size: not a size: 'big'"),
    "restore to nowhere": (
        ["restore", "old.mr"],
        "a destination is needed: -- QEMU [argument ...], or --ram IDSTR=PATH\n",
    ),
    "restore of an unknown block": (
        ["restore", "old.mr", "--ram", "rom=new"],
        "'old.mr' has no block 'rom'; it has 'ram'\n",
    ),
    "restore into something smaller": (
        ["restore", "old.mr", "--ram", "ram=odd"],
        "block 'ram' has 24576 bytes, its destination 'odd' has 4097\n",
    ),
    "restore into something larger": (
        ["restore", "old.mr", "--ram", "ram=old.mr"],
        "block 'ram' has 24576 bytes, its destination 'old.mr' has ",
    ),
    "restore of another size": (
        ["restore", "old.mr", "--ram", "ram=new,size=8K"],
        "block 'ram' has 24576 bytes, its destination 'new' has 8192\n",
    ),
    "restore at half a page": (
        ["restore", "old.mr", "--ram", "ram=new,offset=1K"],
        "offset 1024 of 'new' is not a multiple of 4096\n",
    ),
    "restore into a pipe": (["restore", "old.mr", "--ram", "ram=fifo"], "'fifo' is not a regular file\n"),
    "restore of a block twice": (
        ["restore", "old.mr", "--ram", "ram=x", "--ram", "ram=y"],
        "a block is given two destinations\n",
    ),
    "restore with no channel": (
        ["restore", "old.mr", "--ram", "ram=new", "--channels", "0"],
        "expects a value between 1 and 255\n",
    ),
    "verify of a folder": (["verify", "sub"], "'sub' is not a regular file\n"),
    "verify of a pipe": (["verify", "fifo"], "'fifo' is not a regular file\n"),
    "verify of a socket": (["verify", "tcp:localhost:1"], "Migration requires seekable transport (e.g. file)\n"),
    "verify with RAM of another size": (
        ["verify", "old.mr", "--ram", "ram=noise"],
        "block 'ram' has 24576 bytes in the file, 12288 in RAM\n",
    ),
    "verify with RAM of an unknown block": (
        ["verify", "old.mr", "--ram", "rom=ram"],
        "'old.mr' has no block 'rom'; it has 'ram'\n",
    ),
    "verify with RAM twice": (
        ["verify", "old.mr", "--ram", "ram=ram", "--ram", "ram=ram"],
        "two blocks are named 'ram'\n",
    ),
}


@pytest.mark.parametrize(("argv", "message"), USAGE.values(), ids=USAGE)
def test_a_request_that_makes_no_sense_is_a_usage_error(folder, argv, message):
    with unchanged(folder):
        refused(call(*argv), 2, message)


@pytest.mark.parametrize("verb", ["verify", "inspect", "diff", "restore"])
@pytest.mark.parametrize("name", ["empty", "noise", "odd", "ram"])
def test_what_is_no_migration_file_is_said_to_be_none(folder, verb, name):
    more = {"diff": ["old.mr"], "restore": ["--ram", "ram=new"]}.get(verb, [])
    with unchanged(folder):
        refused(call(verb, name, *more), 3, "at 0x0: not a migration stream: expected the magic 'QEVM'\n")


@pytest.mark.parametrize("verb", ["verify", "inspect", "diff", "restore"])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere", "cannot open 'nowhere': no such file or directory\n"),
        ("ram/new.mr", "cannot open 'ram/new.mr': not a directory\n"),
        ("n" * 300, ": file name too long\n"),
        ("sub", "'sub' is not a regular file\n"),
        ("fifo", "'fifo' is not a regular file\n"),
        ("-", "'-' is not a file: standard input and output cannot seek\n"),
    ],
)
def test_a_name_that_leads_to_no_file_is_its_callers_to_mend(folder, verb, name, message):
    more = {"diff": ["old.mr"], "restore": ["--ram", "ram=new"]}.get(verb, [])
    with unchanged(folder):
        refused(call(verb, name, *more), 2, message)


def test_a_stream_of_something_else_is_no_file_of_ours(folder):
    """A stream without mapped-ram: magic, version 3, and then nothing that we know."""
    (folder / "stream").write_bytes(b"QEVM" + struct.pack(">I", 3) + b"\x01" + bytes(200))
    with unchanged(folder):
        refused(call("verify", "stream"), 3, "")
        refused(call("restore", "stream", "--ram", "ram=new"), 3, "")


def test_files_without_a_common_block_differ(folder):
    done(call("save", folder / "other.mr", "--ram", f"rom={folder / 'ram'}"))
    result = call("diff", "old.mr", "other.mr")
    assert (result.code, result.err) == (1, "")
    *blocks, last = result.out.splitlines()
    assert last == "0 differing pages"
    assert any(line.startswith("rom: only ") and line.endswith(" in other.mr: not compared") for line in blocks)


def test_a_demo_is_told_a_place_for_its_files_that_there_is(folder):
    refused(
        call("demo", "--folder", "nowhere"),
        2,
        "cannot make a folder in 'nowhere': no such file or directory\n",
    )


def test_a_host_without_any_temporary_folder_still_gets_the_help(folder):
    """The default of an option of one verb is no reason to look for such a folder, or to write to it, in all others."""
    refused(
        run("demo", env={"TMPDIR": "nowhere"}, preexec_fn=file_size_limit(0)),
        5,
        "cannot make a folder for temporary files",
    )
    assert run("--help", preexec_fn=file_size_limit(0)).code == 0


def test_a_socket_in_the_file_system_cannot_seek(folder):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "sock"))
        refused(
            call("save", "sock", "--guest", GUEST),
            2,
            "Migration requires seekable transport (e.g. file)\n",
            "'sock' cannot seek",
        )


@pytest.mark.parametrize("option", [["--experimental-multifd"], ["--experimental-multifd", "--channels", "1"]])
def test_the_flag_without_need_does_no_harm(tmp_path, option):
    result = done(run("save", tmp_path / "new.mr", "--guest", GUEST, "--json", *option))
    assert result.json["channels"] == 1
    assert result.json["capabilities"] == {"fixed-ram": True}
    done(run("restore", tmp_path / "new.mr", "--ram", f"pc.ram={tmp_path / 'ram'}", *option))


def test_an_error_that_nobody_expected_is_one_line_and_never_says_that_contents_differ(tmp_path):
    source = (
        "import sys; from parallel_fixedram.verbs import save; from parallel_fixedram.cli.main import main\n"
        "def broken(*args, **kwargs): raise ZeroDivisionError('by zero')\n"
        "save.save = broken; sys.exit(main())"
    )
    result = run("save", tmp_path / "new.mr", "--guest", GUEST, python=("-c", source))
    refused(result, 5, "unexpected ZeroDivisionError: by zero\n", "--debug shows where it came from")
    result = run("--debug", "save", tmp_path / "new.mr", "--guest", GUEST, python=("-c", source))
    assert (result.code, "Traceback" in result.err) == (5, True)


@pytest.mark.parametrize(
    "argv", [["--debug", "verify", "ram"], ["verify", "ram", "--debug"], ["caps", "--debug", "no"]]
)
def test_debug_shows_the_traceback_before_and_after_the_verb(folder, argv):
    result = run(*argv)
    assert result.code in (2, 3)
    assert "Traceback (most recent call last)" in result.err
    assert "\nparallel-fixedram: error: " in result.err


def test_a_file_left_by_a_dead_writer_is_replaced(tmp_path):
    part_of(tmp_path / "new.mr").write_bytes(b"left over")
    done(run("save", tmp_path / "new.mr", "--guest", GUEST))
    assert os.listdir(tmp_path) == ["new.mr"]


def test_a_file_that_another_process_writes_is_left_to_it(tmp_path):
    with part_of(tmp_path / "new.mr").open("wb") as theirs:
        fcntl.flock(theirs, fcntl.LOCK_EX)
        with untouched(tmp_path):
            refused(run("save", tmp_path / "new.mr", "--guest", GUEST), 5, "is being written by another process")


@pytest.mark.parametrize(
    "argv", [["bench", "run", "smoke", "--output", "-"], ["bench", "report", "old.mr", "--output", "-"]]
)
def test_standard_output_is_no_file_for_results_either(folder, argv):
    with unchanged(folder):
        refused(call(*argv), 2, "argument --output: '-' is not a file; for a file of that name write ./-\n")
