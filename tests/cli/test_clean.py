"""``clean``: what commands that were killed have left is named and removed, and nothing that a process holds."""

import fcntl
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from support.cli import Held, call, done, part_of, refused, tree, unchanged, without_proc
from support.somebody_else import NOBODY, as_nobody
from support.system_calls import answered

from parallel_fixedram import clean
from parallel_fixedram.boot.run_folder import PREFIX, FleetFolder, RunFolder, new_record
from parallel_fixedram.core.errors import HostError
from parallel_fixedram.host.files import left_file, part
from parallel_fixedram.host.files.handed_over import made_for
from parallel_fixedram.host.processes.identity import ProcessIdentity, identity_of
from parallel_fixedram.verbs.temporary import temporary_folder

GUEST = "dense,size=1MiB"
OVERLAY = "disk.img.fixedram-20260101-000000.qcow2"
OF_A_GUEST = "0123abcd-0-disk0-virtio0.qcow2"
ENDED = ProcessIdentity(pid=1, started=1, boot="another", namespace="pid:[1]")


@pytest.fixture(autouse=True)
def place(tmp_path, run_folders_in):
    """Links to run folders are looked for here alone."""
    place = tmp_path / "place"
    place.mkdir()
    run_folders_in(place)
    return place


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    return folder


@pytest.fixture
def open_folder(run_folders_in):
    """A folder that everybody can change; that of a test is in one that nobody else can reach."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        os.chmod(name, 0o777)
        for each in ("folder", "place"):
            (Path(name) / each).mkdir()
            (Path(name) / each).chmod(0o777)
        run_folders_in(Path(name) / "place")
        yield Path(name) / "folder"


def said(folder, *, remove=False):
    """Name, kind and what became of each thing that is found."""
    report = clean(str(folder), remove=remove)
    assert report.ok is all(each.held or each.removed for each in report.found)
    return [
        (os.path.relpath(each.path, folder), each.kind, "held" if each.held else "removed" if each.removed else "left")
        for each in report.found
    ]


def one(folder, *, remove=False):
    (found,) = clean(str(folder), remove=remove).found
    return found


def kill(running):
    """Kill the command, and return when all of its processes are gone."""
    children = [os.pidfd_open(pid) for pid in running.family()[1:]]
    os.kill(running.pid, signal.SIGKILL)
    running.process.wait(timeout=60)
    for fd in children:
        assert select.select([fd], [], [], 60)[0]  # readable as soon as that process is dead
        os.close(fd)


def stale(folder, name="new.mr", mode=0o600, contents=b"RAM"):
    """What a killed save leaves."""
    path = part_of(folder / name)
    path.write_bytes(contents)
    path.chmod(mode)
    return path


class TestKilledCommands:
    def test_a_saves_file_is_held_while_it_lives_and_removed_when_it_was_killed(self, folder):
        with Held("save", folder / "new.mr", "--guest", GUEST) as running:
            with unchanged(folder):
                found = one(folder, remove=True)
                assert (found.path, found.held) == (str(folder / ".new.mr.part"), True)
                assert f"process {running.pid} (" in found.why_not
            kill(running)
        with unchanged(folder):
            assert said(folder) == [(".new.mr.part", "part", "left")]
        assert said(folder, remove=True) == [(".new.mr.part", "part", "removed")]
        assert os.listdir(folder) == []

    def test_a_save_that_was_looked_at_goes_on_to_its_end(self, folder):
        with Held("save", folder / "new.mr", "--guest", GUEST) as running:
            assert done(call("clean", folder, "--remove")).out.startswith("held    ")
            running.release()
            done(running.finish())
        assert os.listdir(folder) == ["new.mr"]
        assert said(folder) == []

    def test_the_ram_of_a_restore_that_was_killed_goes_and_that_of_one_that_ended_stays(self, folder):
        done(call("save", folder / "vm.mr", "--guest", GUEST))
        done(call("restore", folder / "vm.mr", "--ram", f"pc.ram={folder / 'whole'}"))
        before = tree(folder)
        with Held("restore", folder / "vm.mr", "--ram", f"pc.ram={folder / 'ram'}") as running:
            assert said(folder, remove=True) == [(".ram.part", "part", "held")]
            kill(running)
        assert said(folder, remove=True) == [(".ram.part", "part", "removed")]
        assert tree(folder) == before

    def test_the_folder_of_a_demo_that_was_killed_goes_with_all_that_is_in_it(self, folder):
        with Held("demo", "--folder", folder, "--size", "8MiB") as running:
            with unchanged(folder):
                ((_, kind, state),) = said(folder, remove=True)
                assert (kind, state) == ("temporary", "held")
            kill(running)
        with unchanged(folder):
            assert [each[1:] for each in said(folder)] == [("temporary", "left")]
        assert [each[1:] for each in said(folder, remove=True)] == [("temporary", "removed")]
        assert os.listdir(folder) == []


class TestParts:
    @pytest.mark.parametrize("moment", ["openat", "flock"], ids=["before it is opened", "before it is locked"])
    def test_a_save_that_begins_before_the_lock_is_ours_keeps_its_file(self, folder, moment):
        path, begun = stale(folder), []

        def begin(call, _):
            if call.path == str(path) and call.name == moment and not begun:
                directory = os.open(folder, os.O_RDONLY)
                begun.append(part.create(".new.mr.part", directory, "new.mr"))
                os.close(directory)

        found = answered(lambda: said(folder, remove=True), begin, under=str(folder)).value
        assert "removed" not in str(found)
        (fd,) = begun
        assert os.path.samestat(os.fstat(fd), os.stat(folder / ".new.mr.part"))
        os.close(fd)

    def test_a_save_that_begins_while_the_lock_is_ours_is_told_so_and_writes_no_nameless_file(
        self, folder, monkeypatch
    ):
        stale(folder)
        real = left_file.who_has_open

        def racing(fd):
            directory = os.open(folder, os.O_RDONLY)
            with pytest.raises(HostError, match="being written by another process"):
                part.create(".new.mr.part", directory, "new.mr")
            os.close(directory)
            return real(fd)

        monkeypatch.setattr(left_file, "who_has_open", racing)
        assert said(folder, remove=True) == [(".new.mr.part", "part", "removed")]

    def test_what_a_process_has_open_without_a_lock_is_held_too(self, folder):
        """Of another program that calls its files like this."""
        path = stale(folder)
        with open(path, "rb"):
            found = one(folder, remove=True)
        assert (found.held, path.exists()) == (True, True)
        assert f"process {os.getpid()} (" in found.why_not

    def test_what_only_looks_like_a_part_is_not_ours(self, folder, tmp_path):
        stale(folder, "others.mr", mode=0o644)
        stale(tmp_path, "elsewhere")
        (folder / ".link.part").symlink_to(tmp_path / ".elsewhere.part")
        (folder / ".folder.part").mkdir(mode=0o700)
        os.mkfifo(folder / ".pipe.part", 0o600)
        for name in ("results.json.part", "new.part", ".part", "..part", "vm.mr", "results.json"):
            (folder / name).touch(0o600)
        (folder / "below").mkdir()
        stale(folder / "below")
        with unchanged(tmp_path):
            assert said(folder, remove=True) == []

    def test_files_of_others_are_roots_business(self, open_folder):
        stale(open_folder)
        assert as_nobody(lambda: said(open_folder, remove=True)) == []
        os.chown(part_of(open_folder / "new.mr"), NOBODY, NOBODY)
        assert said(open_folder, remove=True) == [(".new.mr.part", "part", "removed")]

    def test_names_may_be_anything(self, folder):
        name = os.fsdecode(b".\xff\n\x1b.part")
        (folder / name).touch(0o600)
        result = call("clean", folder)
        assert (result.code, result.out.count("\n"), "\x1b" in result.out) == (1, 2, False)
        found = call("clean", folder, "--remove", "--json").json["found"]
        assert [(each["path"], each["removed"]) for each in found] == [(str(folder / name), True)]


class TestOverlays:
    def write(self, path, behind=b"/images/disk.img"):
        header = struct.pack(">4sIQI", b"QFI\xfb", 3, 512, len(behind))
        path.write_bytes(header.ljust(512, b"\0") + behind)
        return path

    @pytest.mark.parametrize("name", [OVERLAY, OF_A_GUEST])
    def test_an_empty_one_that_nobody_has_open_goes(self, folder, name):
        (folder / name).touch()
        with unchanged(folder):
            assert said(folder) == [(name, "overlay", "left")]
        with open(folder / name), unchanged(folder):
            assert said(folder, remove=True) == [(name, "overlay", "held")]
        assert said(folder, remove=True) == [(name, "overlay", "removed")]

    @pytest.mark.parametrize(("name", "how"), [(OVERLAY, "disks commit"), (OF_A_GUEST, "qemu-img commit")])
    def test_one_with_contents_is_named_with_what_it_is_on_and_stays(self, folder, name, how):
        self.write(folder / name)
        with unchanged(folder):
            found = one(folder, remove=True)
            assert call("clean", folder, "--remove").code == 1
        assert "'/images/disk.img'" in found.what
        assert (found.held, found.removed) == (False, False)
        assert how in found.why_not

    def test_one_in_use_is_nothing_left_behind(self, folder):
        with open(self.write(folder / OVERLAY), "r+b"):
            assert said(folder) == [(OVERLAY, "overlay", "held")]
            done(call("clean", folder))

    def test_one_that_is_being_made_for_a_qemu_is_held_until_that_has_it(self, folder):
        path = str(folder / OVERLAY)
        with made_for(os.getpid(), path), unchanged(folder):
            assert said(folder, remove=True) == [(OVERLAY, "overlay", "held")]
        assert said(folder, remove=True) == [(OVERLAY, "overlay", "removed")]

    @pytest.mark.parametrize(
        "contents", [b"QFI", b"raw" * 100, struct.pack(">4sIQI", b"QFI\xfb", 3, 1 << 60, 9)], ids=len
    )
    def test_one_that_is_no_qcow2_is_said_to_be_none(self, folder, contents):
        (folder / OVERLAY).write_bytes(contents)
        assert "header makes no sense" in one(folder).what

    def test_other_images_are_not_ours(self, folder):
        for name in ("disk.qcow2", "disk.img.fixedram-2026.qcow2", "x-0-disk0-a.qcow2", f"{OVERLAY}.bak"):
            (folder / name).touch()
        assert said(folder) == []


@pytest.mark.usefixtures("without_leases")
class TestWithoutLeases:
    """On NFS and FUSE, where /proc has to tell."""

    def test_an_open_overlay_is_held(self, folder):
        (folder / OVERLAY).touch()
        with open(folder / OVERLAY):
            assert f"process {os.getpid()} (" in one(folder, remove=True).why_not
        assert (folder / OVERLAY).exists()

    def test_a_mapped_one_is_held(self, folder):
        code = (
            "import mmap, sys; file = open(sys.argv[1], 'r+b'); file.truncate(4096); map = mmap.mmap(file.fileno(), 0);"
            "file.close(); print(flush=True); sys.stdin.read()"
        )
        (folder / OVERLAY).touch()
        argv = [sys.executable, "-c", code, folder / OVERLAY]
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdout.read(1)
            assert f"process {process.pid} (" in one(folder).why_not
            process.communicate()

    def test_where_a_process_does_not_tell_an_overlay_stays_and_a_part_goes_by_its_lock(self, folder, monkeypatch):
        def unseen(pid, *_):
            raise PermissionError

        monkeypatch.setattr("parallel_fixedram.host.files.holders._has_open", unseen)
        (folder / OVERLAY).touch()
        stale(folder)
        with open(stale(folder, "used.mr"), "r+b") as used:
            fcntl.flock(used, fcntl.LOCK_EX)
            assert said(folder, remove=True) == [
                (".new.mr.part", "part", "removed"),
                (".used.mr.part", "part", "held"),
                (OVERLAY, "overlay", "left"),
            ]
        (folder / ".used.mr.part").unlink()
        assert "cannot tell whether a process has it open" in one(folder).why_not


class TestRunFolders:
    @pytest.fixture
    def made(self, folder):
        """Makes a run folder NAME/N of a process, with a socket and a log."""

        def make(name=f"{PREFIX}one", number=0, process=ENDED):
            path = folder / name / str(number)
            path.mkdir(parents=True)
            run = RunFolder(str(path))
            with socket.socket(socket.AF_UNIX) as listener:
                here = os.getcwd()
                os.chdir(path)  # its name may be too long for a socket
                listener.bind("qmp")
                os.chdir(here)
            (path / "log").write_text("qemu: no\n")
            if process:
                run.write_record(new_record(process, "/vm.mr"))
            return path

        return make

    @pytest.mark.parametrize("process", [ENDED, None], ids=["ended", "never handed over"])
    def test_one_whose_guest_has_ended_goes_with_its_overlays(self, folder, made, process):
        (made(process=process) / "disk0-a.qcow2").write_bytes(b"written")
        with unchanged(folder):
            assert said(folder) == [(f"{PREFIX}one", "run-folder", "left")]
            assert "guest one/0, " in one(folder).what
        assert said(folder, remove=True) == [(f"{PREFIX}one", "run-folder", "removed")]
        assert os.listdir(folder) == []

    def test_what_a_clean_that_was_killed_has_left_of_one_goes(self, folder, made):
        for path in (at := made()).iterdir():
            path.unlink()
        assert said(folder) == [(f"{PREFIX}one", "run-folder", "left")]
        assert said(folder, remove=True) == [(f"{PREFIX}one", "run-folder", "removed")]
        assert not at.exists()

    def test_one_in_which_a_guest_lives_is_held_and_so_are_its_other_guests(self, folder, made):
        made()
        made(number=1, process=identity_of(os.getpid()))
        with unchanged(folder):
            found = one(folder, remove=True)
        assert found.held
        assert f"the guest is running, as process {os.getpid()}" in found.why_not

    def test_one_with_a_qemu_that_was_not_handed_over_is_held_by_what_that_has_open(self, folder, made):
        with open(made(process=None) / "log", "a"), unchanged(folder):
            found = one(folder, remove=True)
        assert found.held
        assert "'log' in it: process" in found.why_not

    def test_one_with_which_a_command_works_is_held(self, folder, made):
        made()
        lock = os.open(folder / f"{PREFIX}one", os.O_RDONLY)
        fcntl.flock(lock, fcntl.LOCK_EX)
        with unchanged(folder):
            assert said(folder, remove=True) == [(f"{PREFIX}one", "run-folder", "held")]
        os.close(lock)

    def test_what_cannot_be_known_stays(self, folder, made):
        here = identity_of(os.getpid())
        elsewhere = ProcessIdentity(pid=here.pid, started=here.started, boot=here.boot, namespace="pid:[1]")
        made(f"{PREFIX}one", process=elsewhere)
        (made(f"{PREFIX}two") / "guest").write_text("{")
        with unchanged(folder):
            first, second = clean(str(folder), remove=True).found
        assert "another pid namespace" in first.why_not
        assert "not a record that this command wrote" in second.why_not
        assert (first.is_left, second.is_left) == (True, True)

    def test_what_somebody_else_put_there_stays_and_that_is_said(self, folder, made):
        (made() / "notes").write_text("mine")
        found = one(folder, remove=True)
        assert (found.removed, "it contains more" in found.why_not) == (False, True)
        assert [path.name for path in folder.rglob("*")] == [f"{PREFIX}one", "0", "notes"]

    def test_a_log_that_was_kept_and_folders_of_others_are_not_left_behind(self, folder, made):
        (made(process=None) / "qmp").unlink()
        (folder / f"{PREFIX}source" / "parallel_fixedram").mkdir(parents=True)
        (folder / f"{PREFIX}source" / "2026").touch()
        (folder / "0").mkdir()
        with unchanged(folder):
            assert said(folder, remove=True) == []

    def test_one_that_a_link_leads_to_is_found_whatever_it_is_called_and_goes_with_the_link(self, folder, made, place):
        made("mine")
        (place / f"{PREFIX}link").symlink_to(folder / "mine")
        assert "guest link/0, " in one(folder).what
        assert said(place, remove=True) == []
        assert said(folder, remove=True) == [("mine", "run-folder", "removed")]
        assert (os.listdir(folder), os.listdir(place)) == ([], [])

    def test_a_link_that_leads_nowhere_goes(self, folder):
        (folder / f"{PREFIX}link").symlink_to("gone")
        assert said(folder) == [(f"{PREFIX}link", "link", "left")]
        assert said(folder, remove=True) == [(f"{PREFIX}link", "link", "removed")]
        assert os.listdir(folder) == []

    def test_one_of_another_user_is_not_looked_into(self, open_folder):
        (open_folder / f"{PREFIX}one" / "0").mkdir(parents=True)
        assert as_nobody(lambda: said(open_folder, remove=True)) == []
        assert said(open_folder) == [(f"{PREFIX}one", "run-folder", "left")]


class TestTemporary:
    def test_one_in_use_is_held_and_leaves_nothing(self, folder):
        with temporary_folder(str(folder)) as path, unchanged(folder):
            (found,) = clean(str(folder), remove=True).found
            assert (found.path, found.held) == (path, True)
        assert os.listdir(folder) == []

    def test_an_empty_one_goes_when_nobody_can_be_about_to_use_it(self, folder):
        path = folder / f"{PREFIX}0123abcd"
        path.mkdir(0o700)
        assert said(folder, remove=True) == [(path.name, "temporary", "held")]
        os.utime(path, (0, 0))
        fleet = FleetFolder(str(path))
        assert fleet.look()
        lock = os.open(path, os.O_RDONLY)
        fleet.let_go()
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert said(folder, remove=True) == [(path.name, "temporary", "held")]
        os.close(lock)
        assert said(folder, remove=True) == [(path.name, "temporary", "removed")]

    def test_folders_that_we_have_not_marked_are_somebody_elses(self, folder):
        for name in (f"{PREFIX}main", f"{PREFIX}0123abcd", f"{PREFIX}0123abce"):
            (folder / name).mkdir(0o700)
            os.utime(folder / name, (0, 0))
        (folder / f"{PREFIX}0123abcd" / "README.md").touch()
        (folder / f"{PREFIX}0123abce").chmod(0o755)
        with unchanged(folder):
            assert said(folder, remove=True) == []

    def test_links_in_one_are_removed_not_followed(self, folder, tmp_path):
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "file").touch()
        path = folder / f"{PREFIX}0123abcd"
        path.mkdir(0o700)
        (path / ".temporary").touch()
        (path / "link").symlink_to(tmp_path / "mine")
        assert said(folder, remove=True) == [(path.name, "temporary", "removed")]
        assert (tmp_path / "mine" / "file").exists()


class TestCommand:
    def test_it_says_what_is_there_what_became_of_it_and_what_to_do(self, folder):
        stale(folder)
        (folder / OVERLAY).write_bytes(b"QFI")
        result = call("clean", folder)
        assert (result.code, result.err) == (1, "")
        assert result.out.splitlines()[0].startswith(f"left    '{folder}/.new.mr.part': unfinished 'new.mr'")
        assert result.out.splitlines()[-1] == "2 leftovers; --remove removes 1"
        result = call("clean", folder, "--remove")
        assert (result.code, result.out.splitlines()[0].split()[0]) == (1, "removed")
        assert result.out.splitlines()[-1] == "1 leftover, not for this command to remove"
        (folder / OVERLAY).unlink()
        assert done(call("clean", folder)).out == "nothing is left here\n"

    def test_its_object_has_the_same(self, folder):
        stale(folder)
        result = call("clean", folder, "--json")
        assert (result.code, result.err) == (1, "")
        (found,) = result.json.pop("found")
        assert {**result.json, "found": []} == {
            "schema": "parallel_fixedram.clean", "version": 1, "verb": "clean", "folder": str(folder), "ok": False,
            "found": [],
        }  # fmt: skip
        assert list(found) == ["path", "kind", "what", "held", "removed", "why_not"]
        assert json.dumps(found["kind"]) == '"part"'

    @pytest.mark.parametrize("name", ["gone", "file", "link"])
    def test_a_folder_that_is_none_is_a_wrong_name(self, folder, name):
        (folder / "file").touch()
        (folder / "link").symlink_to("link")
        refused(call("clean", folder / name), 2, f"cannot open the folder '{folder / name}': ")

    def test_without_proc_a_guest_is_not_taken_for_ended(self, folder):
        path = Path(folder / f"{PREFIX}one" / "0")
        path.mkdir(parents=True)
        RunFolder(str(path)).write_record(new_record(ENDED, "/vm.mr"))
        with unchanged(folder):
            (found,) = without_proc("clean", folder, "--remove", "--json").json["found"]
        assert "no /proc is mounted here" in found["why_not"]

    def test_what_cannot_be_removed_is_said(self, folder, refuse):
        stale(folder)

        refuse(left_file.os, "unlink", 1)
        assert one(folder, remove=True).why_not == "cannot be removed: operation not permitted"
