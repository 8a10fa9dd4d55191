"""What is saved is what was there, and what is restored is what was saved, whatever the options."""

import errno
import os
import stat
import threading

import pytest
from support.cli import call, done, refused, run, tmpfs, unchanged
from support.pictures import PAGE, content, picture_of
from support.qemu_tools import missing
from support.system_calls import answered, without

from parallel_fixedram.core.units import MIB
from parallel_fixedram.machines.builtin.spec import GuestSpec, Workload
from parallel_fixedram.machines.builtin.workload import render

MULTIFD = ("--channels", "3", "--experimental-multifd")
SIZES = [1, 63, 64, 65]
"""Pages: around the 64 that one word of a bitmap stands for."""


def verdict(result):
    return result.out.splitlines()[-1].partition(": ")[2]


@pytest.mark.parametrize("options", [[], MULTIFD])
@pytest.mark.parametrize("workload", Workload)
def test_a_guest_of_any_workload_comes_back_byte_by_byte(tmp_path, workload, options):
    spec = f"{workload},size=1028KiB,seed=3,steps=2,fraction=0.4"
    image, copy = tmp_path / "guest.mr", tmp_path / "copy"
    done(call("save", image, "--guest", spec, *options))
    done(call("restore", image, "--ram", f"pc.ram={copy}", "--verify", *options))
    assert copy.read_bytes() == render(GuestSpec.parse(spec), 2).tobytes()
    assert (
        verdict(done(call("verify", image, "--ram", f"pc.ram={copy}")))
        == "ok (structure, digests, RAM of pc.ram checked)"
    )


def test_the_real_command_saves_restores_verifies_and_compares(tmp_path):
    a, b, copy = (tmp_path / name for name in ("a.mr", "b.mr", "copy"))
    done(run("save", a, "--guest", "dense,size=4MiB,seed=1", *MULTIFD))
    done(run("restore", a, "--ram", f"pc.ram={copy}"))
    done(run("save", b, "--ram", f"pc.ram={copy}"))
    assert done(run("diff", a, b)).out == "equal\n"
    done(run("verify", b, "--ram", f"pc.ram={copy}"))
    with copy.open("r+b") as ram:
        ram.write(b"changed")
    result = run("verify", b, "--ram", f"pc.ram={copy}")
    assert (result.code, verdict(result)) == (1, "DIFFERS (structure, digests, RAM of pc.ram checked)")
    assert {path.name for path in tmp_path.iterdir()} == {"a.mr", "b.mr", "copy"}


def test_the_same_guest_gives_the_same_ram_and_another_seed_another(tmp_path):
    for name, seed, channels in (("a", 1, ()), ("b", 1, MULTIFD), ("c", 2, ())):
        done(call("save", tmp_path / name, "--guest", f"random,size=2MiB,seed={seed}", *channels))
    assert call("diff", tmp_path / "a", tmp_path / "b").code == 0
    result = call("diff", tmp_path / "a", tmp_path / "c", "--json")
    assert (result.code, result.json["equal"]) == (1, False)
    listed = sum(each["pages"] for each in result.json["differences"])
    assert result.json["truncated"] is (listed < result.json["differing_pages"])


@pytest.mark.parametrize("options", [[], MULTIFD, ["--direct-io", "off"], ["--durability", "none"]])
@pytest.mark.parametrize("pages", SIZES)
def test_blocks_of_any_size_come_back_side_by_side(tmp_path, pages, options):
    pictures = {"ram": ("A-0b" * 17)[:pages], "rom": "Z", "vga.vram": "-" * pages}
    argv, back = [], []
    for name, picture in pictures.items():
        (tmp_path / name).write_bytes(content(picture))
        argv += ["--ram", f"{name}={tmp_path / name}"]
        back += ["--ram", f"{name}={tmp_path / name}.back"]
    done(call("save", tmp_path / "all.mr", *argv, *options))
    done(call("restore", tmp_path / "all.mr", *back))
    for name, picture in pictures.items():
        assert picture_of((tmp_path / f"{name}.back").read_bytes()) == picture.replace("-", "0")
    assert done(call("verify", tmp_path / "all.mr", *argv)).code == 0


def test_blocks_may_be_parts_of_one_file(tmp_path):
    ram, copy = tmp_path / "ram", tmp_path / "copy"
    ram.write_bytes(content("ABCDEFGH"))
    parts = ("low={},size=12K", "high={},offset=20K,size=8K", "last={},offset=28672")
    done(call("save", tmp_path / "f.mr", *(f"--ram={part.format(ram)}" for part in parts)))
    copy.write_bytes(content("zzzzzzzz"))
    result = done(call("restore", tmp_path / "f.mr", *(f"--ram={part.format(copy)}" for part in parts), "--json"))
    assert picture_of(copy.read_bytes()) == "ABCzzFGH"
    assert [block["idstr"] for block in result.json["blocks"]] == ["low", "high", "last"]
    done(call("verify", tmp_path / "f.mr", *(f"--ram={part.format(ram)}" for part in parts)))


def test_a_path_may_hold_commas_equal_signs_and_what_looks_like_another_option(tmp_path):
    for name in ("a,b=c", "x,offset", "y,size=,z", "é,\n"):
        (tmp_path / name).write_bytes(content("AB"))
        done(call("save", tmp_path / "new.mr", "--ram", f"r={tmp_path / name},size=4K,offset=4096", "--overwrite"))
        assert picture_of(done_restore(tmp_path)) == "B"


def done_restore(folder):
    done(call("restore", folder / "new.mr", "--ram", f"r={folder / 'back'}"))
    return (folder / "back").read_bytes()


def test_a_restore_may_leave_blocks_out_and_says_so(tmp_path):
    for name in ("ram", "rom"):
        (tmp_path / name).write_bytes(content("AB"))
    done(call("save", tmp_path / "f.mr", *(f"--ram={name}={tmp_path / name}" for name in ("ram", "rom"))))
    result = done(call("restore", tmp_path / "f.mr", "--ram", f"rom={tmp_path / 'new'}"))
    assert "ram: left out, no destination was given\n" in result.out
    assert picture_of((tmp_path / "new").read_bytes()) == "AB"


def test_a_restore_overwrites_whatever_a_destination_held(tmp_path):
    (tmp_path / "ram").write_bytes(content("A-0B" * 20))
    done(call("save", tmp_path / "f.mr", "--ram", f"ram={tmp_path / 'ram'}"))
    (tmp_path / "used").write_bytes(os.urandom(80 * PAGE))
    inode = (tmp_path / "used").stat().st_ino
    done(call("restore", tmp_path / "f.mr", "--ram", f"ram={tmp_path / 'used'}", "--verify"))
    assert picture_of((tmp_path / "used").read_bytes()) == "A00B" * 20
    assert (tmp_path / "used").stat().st_ino == inode  # in place: it may be the memory of a waiting process


@pytest.mark.parametrize("offset", ["1", "4096", "64K", "0x100000", "1.5M"])
def test_a_stream_may_start_inside_the_file_and_the_prefix_is_kept(tmp_path, offset):
    bytes_before = {"1": 1, "4096": 4096, "64K": 65536, "0x100000": MIB, "1.5M": MIB * 3 // 2}[offset]
    target, uri = tmp_path / "vm.img", f"file:{tmp_path / 'vm.img'},offset={offset}"
    prefix = os.urandom(bytes_before)
    target.write_bytes(prefix + b"what follows goes")
    (tmp_path / "ram").write_bytes(content("AB-c"))
    ram = ("--ram", f"ram={tmp_path / 'ram'}")
    with unchanged(tmp_path):
        refused(call("save", uri, *ram), 2, "exists\n", "--overwrite")
    result = done(call("save", uri, *ram, "--overwrite", "--json"))
    assert result.json["file"] == str(target)
    assert target.read_bytes()[:bytes_before] == prefix
    assert call("inspect", uri, "--json").json["offset"] == bytes_before
    done(call("verify", uri, *ram))
    done(call("restore", uri, "--ram", f"ram={tmp_path / 'back'}"))
    assert picture_of((tmp_path / "back").read_bytes()) == "AB0c"
    done(call("save", tmp_path / "plain.mr", *ram))
    assert done(call("diff", uri, tmp_path / "plain.mr")).out == "equal\n"
    refused(call("verify", target), 3, "at 0x0: not a migration stream")


def test_a_prefix_of_a_file_that_is_not_there_is_a_hole(tmp_path):
    (tmp_path / "ram").write_bytes(content("AB"))
    done(call("save", f"file:{tmp_path / 'f'},offset=8K", "--ram", f"ram={tmp_path / 'ram'}"))
    assert (tmp_path / "f").read_bytes()[:8196] == bytes(8192) + b"QEVM"


def test_a_file_whose_name_looks_like_a_uri_can_be_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done(call("save", "file:tcp:x", "--guest", "zero,size=4K"))
    done(call("save", "./exec:y", "--guest", "zero,size=4K"))
    done(call("save", "z,offset=4096", "--guest", "zero,size=4K"))
    assert sorted(os.listdir()) == ["exec:y", "tcp:x", "z,offset=4096"]


def test_direct_io_is_what_was_asked_for_and_the_file_is_the_same(tmp_path):
    images = {}
    for wanted in ("on", "off", "auto"):
        images[wanted] = tmp_path / wanted
        result = call("save", images[wanted], "--guest", "hot,size=2MiB", "--direct-io", wanted, "--json")
        if result.code:
            refused(result, 5, "refuses direct I/O", "--direct-io auto falls back to buffered writes")
            missing("this file system has no direct I/O")
        assert done(result).json["direct_io"] is (wanted != "off")
        done(call("verify", images[wanted]))
    assert images["on"].read_bytes() == images["off"].read_bytes() == images["auto"].read_bytes()


def test_where_direct_io_is_refused_auto_falls_back_and_says_so(tmp_path, refuse_direct_io):
    refuse_direct_io()
    with unchanged(tmp_path):
        result = call("save", tmp_path / "new.mr", "--guest", "dense,size=1MiB", "--direct-io", "on")
        refused(result, 5, "refuses direct I/O\n", "--direct-io auto falls back to buffered writes")
    result = done(call("save", tmp_path / "new.mr", "--guest", "dense,size=1MiB", "--json"))
    assert result.json["choice"]["why"][0] == "page cache: the file system refuses direct I/O"
    assert (result.json["direct_io"], result.json["notes"], result.err) == (False, [], "")
    text = done(call("save", tmp_path / "text.mr", "--guest", "dense,size=1MiB")).out
    assert "  because   page cache: the file system refuses direct I/O\n" in text


def test_what_was_done_otherwise_than_asked_is_a_note(tmp_path):
    def save(name, *more):
        """Where a sandbox forbids asynchronous I/O."""
        argv = ("save", tmp_path / name, "--guest", "dense,size=1MiB", "--direct-io", "on", *more)
        return without(("io_setup", "io_submit"), errno.EPERM, lambda: call(*argv))

    result = save("new.mr", "--json")
    if "refuses direct I/O" in result.err:
        missing("this file system has no direct I/O")
    (note,) = done(result).json["notes"]
    assert note == "the kernel allows no asynchronous I/O: direct writes are done one at a time"
    assert result.err == ""  # with --json notes are in the object alone
    text = done(save("text.mr"))
    assert text.err == f"parallel-fixedram: note: {note}\n"


def test_without_durability_nothing_is_synced(tmp_path):
    def synced(name, *more):
        """The files and folders that are synced while a guest is saved."""
        argv = ("save", tmp_path / name, "--guest", "dense,size=1MiB", *more)
        found = answered(lambda: call(*argv), lambda *_: None, under=str(tmp_path))
        done(found.value)
        return [call.path for call in found.calls if call.name in ("fsync", "fdatasync")]

    assert synced("a.mr", "--durability", "none") == []
    assert synced("b.mr") == [
        str(tmp_path / ".b.mr.part"),
        str(tmp_path),
    ]  # the file before it has its name, then the name
    assert done(call("diff", tmp_path / "a.mr", tmp_path / "b.mr")).out == "equal\n"


def test_a_name_that_may_be_lost_has_an_exit_code_of_its_own(tmp_path, fail_sync):
    fail_sync(folders=True)
    result = call("save", tmp_path / "new.mr", "--guest", "dense,size=1MiB")
    refused(result, 6, f"'{tmp_path / 'new.mr'}' is published, but its folder cannot be synced: input/output error\n")
    assert os.listdir(tmp_path) == ["new.mr"]
    done(call("verify", tmp_path / "new.mr"))


def test_a_file_that_cannot_be_synced_gets_no_name(tmp_path, refuse):
    (tmp_path / "old.mr").write_bytes(b"old")
    refuse(os, "fsync", 5)
    with unchanged(tmp_path):
        result = call("save", tmp_path / "old.mr", "--guest", "dense,size=1MiB", "--overwrite")
        refused(result, 5, f"cannot sync '{tmp_path / 'old.mr'}': input/output error\n")


@pytest.mark.parametrize("options", [[], MULTIFD, ["--direct-io", "on"], ["--max-rounds", "1"], ["--max-rounds", "3"]])
def test_a_live_guest_is_saved_in_rounds_and_the_file_verifies(tmp_path, options):
    spec = "hot,size=8MiB,seed=5,rate=64MiB"
    report = done(call("save", tmp_path / "live.mr", "--guest", spec, "--capture", "rounds", "--json", *options)).json
    assert 1 <= len(report["rounds"]) <= 16
    assert report["rounds"][0]["dirty_pages"] == 2048
    assert report["seconds"]["pause"] > 0
    assert report["blocks"][0]["pages"] == 2048
    done(call("verify", tmp_path / "live.mr"))
    done(call("restore", tmp_path / "live.mr", "--ram", f"pc.ram={tmp_path / 'ram'}", "--verify"))


def test_a_live_guest_that_idles_is_saved_as_it_is_after_its_steps(tmp_path):
    spec = "sweep,size=4MiB,seed=5,steps=7"
    done(call("save", tmp_path / "live.mr", "--guest", spec, "--capture", "rounds"))
    done(call("restore", tmp_path / "live.mr", "--ram", f"pc.ram={tmp_path / 'ram'}"))
    boot, after = (render(GuestSpec.parse(spec), steps).tobytes() for steps in (0, 7))
    ram = (tmp_path / "ram").read_bytes()
    pages = [slice(start, start + PAGE) for start in range(0, len(ram), PAGE)]
    # a sweep goes through the pages in order: each is as booted or as a step that came before the pause left it
    assert len(ram) == len(boot)
    assert sum(ram[p] == boot[p] or ram[p] == after[p] for p in pages) > 0
    done(call("verify", tmp_path / "live.mr", "--ram", f"pc.ram={tmp_path / 'ram'}"))


@pytest.mark.parametrize("umask", [0, 0o777])
def test_files_are_private_whatever_the_umask(tmp_path, umask):
    image, copy = tmp_path / "new.mr", tmp_path / "copy"
    done(run("save", image, "--guest", "dense,size=1MiB", preexec_fn=lambda: os.umask(umask)))
    done(run("restore", image, "--ram", f"pc.ram={copy}", preexec_fn=lambda: os.umask(umask)))
    for path in (image, copy):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_file_with_a_wide_mode_is_replaced_by_a_private_one(tmp_path):
    image = tmp_path / "new.mr"
    image.write_bytes(b"old")
    image.chmod(0o666)
    (tmp_path / "link").hardlink_to(image)
    done(call("save", image, "--guest", "dense,size=1MiB", "--overwrite"))
    assert stat.S_IMODE(image.stat().st_mode) == 0o600
    assert (tmp_path / "link").read_bytes() == b"old"  # a new inode: other names of the old file keep its contents


def test_a_symbolic_link_is_replaced_and_not_followed(tmp_path):
    (tmp_path / "victim").write_bytes(b"victim")
    (tmp_path / "new.mr").symlink_to("victim")
    said = done(call("save", tmp_path / "new.mr", "--guest", "dense,size=1MiB", "--overwrite")).err
    assert f"note: '{tmp_path / 'new.mr'}' was a symbolic link to 'victim'; the new file replaced the link" in said
    assert (tmp_path / "victim").read_bytes() == b"victim"
    assert not (tmp_path / "new.mr").is_symlink()


def test_the_old_file_stays_until_the_new_one_takes_its_name(tmp_path):
    """Whoever looks at the name finds a whole file, the old one or the new one, at every instant."""
    done(call("save", tmp_path / "f.mr", "--guest", "dense,size=1MiB,seed=1"))
    seen, stop = set(), threading.Event()

    def look():
        while not stop.is_set():
            status = (tmp_path / "f.mr").stat()
            seen.add((status.st_ino, status.st_size))

    watcher = threading.Thread(target=look)
    before = (tmp_path / "f.mr").stat()
    watcher.start()
    try:
        done(run("save", tmp_path / "f.mr", "--guest", "dense,size=4MiB,seed=2", "--overwrite"))
    finally:
        stop.set()
        watcher.join()
    after = (tmp_path / "f.mr").stat()
    assert before.st_ino != after.st_ino
    assert seen <= {(before.st_ino, before.st_size), (after.st_ino, after.st_size)}
    assert os.listdir(tmp_path) == ["f.mr"]


def test_ram_on_a_real_memory_file_system_is_saved_without_touching_its_holes(tmp_path):
    with tmpfs(tmp_path / "shm", "size=8m") as shm:
        with (shm / "ram").open("wb") as ram:
            ram.truncate(6 * MIB)
            ram.write(content("AB"))
        report = done(call("save", tmp_path / "f.mr", "--ram", f"ram={shm / 'ram'}", "--json")).json
        assert (report["blocks"][0]["data_pages"], report["blocks"][0]["zero_pages"]) == (2, 1534)
        assert (shm / "ram").stat().st_blocks * 512 == 2 * PAGE
        done(call("restore", tmp_path / "f.mr", "--ram", f"ram={shm / 'back'}"))
        assert (shm / "back").stat().st_blocks * 512 == 2 * PAGE
