"""``doctor``: what it finds of host and folder, what that means, and that nothing of it is left."""

import json
import os
import stat
import time

import pytest
from support.cli import call, done, refused, remount, run, tmpfs, untouched, without_override, without_proc
from support.fake_qmp import FakeQmp, closes, dies, returns
from support.puppet import Puppet
from support.qemu_tools import missing
from support.seccomp import install, only
from support.watched import require_userfaultfd

import parallel_fixedram
from parallel_fixedram.cli import doctor as command
from parallel_fixedram.core.cost import ASSUMED
from parallel_fixedram.core.errors import HostError
from parallel_fixedram.core.reports.doctor import DoctorReport, Finding, Section, Verdict
from parallel_fixedram.engine.tuning import calibrate
from parallel_fixedram.experiments import tools
from parallel_fixedram.experiments.file_systems import file_system
from parallel_fixedram.host import user_cache
from parallel_fixedram.host.memory import ksm, userfaultfd
from parallel_fixedram.host.memory.userfaultfd import Feature
from parallel_fixedram.host.processes import rights
from parallel_fixedram.machines.qemu.watch import VARIABLE

NOBODY = 65534
SYS_PTRACE, EPERM = 101, 0x50001


def report(*argv):
    """What the command finds, as Python has it; its exit code is what its verdicts say."""
    result = call("doctor", "--json", *argv)
    assert result.err == ""
    found = parallel_fixedram.from_json(DoctorReport, json.loads(result.out))
    assert result.code == (0 if found.ok else 1)
    assert found.ok == (Verdict.REFUSED not in {each.verdict for each in findings(found).values()})
    return found


def findings(found):
    return {each.what: each for section in found.sections for each in section.findings}


def test_a_host_and_a_folder_are_looked_at_and_nothing_is_left(tmp_path):
    with untouched(tmp_path):
        found = report(tmp_path)
    assert (found.ok, found.folder, found.qmp) == (True, str(tmp_path), "")
    assert [section.name for section in found.sections] == ["host", "folder", "save"]
    assert found.capture in ("snapshot", "compare")
    assert all(each.detail for each in findings(found).values())
    assert {"userfaultfd", "/dev/userfaultfd", "yama", "PAGEMAP_SCAN", "huge pages", "memory"} <= set(findings(found))


def test_where_a_snapshot_can_be_taken_it_is_what_auto_takes(tmp_path):
    require_userfaultfd()
    found = report(tmp_path)
    lacking = [what for what in ("watching RAM", "seccomp", "yama") if findings(found)[what].verdict != "ok"]
    assert (found.capture == "snapshot") == (not lacking), lacking


def test_the_folder_is_this_one_if_none_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = call("doctor")
    assert (result.code, result.err) == (0, "")
    assert "\nfolder .\n" in result.out
    assert result.out.endswith("\na save would work\n")


def forbidden(patch):
    patch.setenv(VARIABLE, "never")


def no_feature(patch):
    patch.setattr(userfaultfd, "missing_features", lambda: (Feature.WP_UNPOPULATED,))


def no_userfaultfd(patch):
    def refuse():
        raise HostError("cannot get a userfaultfd: function not implemented")

    patch.setattr(userfaultfd, "missing_features", refuse)


def merging(patch):
    patch.setattr(ksm, "is_merging", lambda: True)


def scope(number):
    def limit(patch):
        patch.setattr(rights, "ptrace_scope", lambda: number)
        patch.setattr(rights, "has", lambda _pid, _capability: number == 3)

    return limit


@pytest.mark.parametrize(
    ("what", "miss", "detail", "how"),
    [
        ("permission", forbidden, f"{VARIABLE}=never forbids", ""),
        ("userfaultfd", no_feature, "this kernel has no UFFD_FEATURE_WP_UNPOPULATED", "Linux 6.4 or later"),
        ("userfaultfd", no_userfaultfd, "function not implemented", "a kernel and a sandbox that have userfaultfd"),
        ("merging (KSM)", merging, "this host merges pages", "mem-merge=off"),
        ("yama", scope(1), "kernel.yama.ptrace_scope is 1: only shared memory", "kernel.yama.ptrace_scope=0"),
        ("yama", scope(3), "kernel.yama.ptrace_scope is 3: only shared memory", "kernel.yama.ptrace_scope=0"),
    ],
)
def test_what_a_snapshot_lacks_is_named_with_how_to_get_it_and_auto_compares(
    tmp_path, monkeypatch, what, miss, detail, how
):
    miss(monkeypatch)
    found = report(tmp_path)
    assert found.ok
    assert found.capture == "compare"
    lacking = findings(found)[what]
    assert lacking.verdict is Verdict.ABSENT
    assert detail in lacking.detail
    assert how in lacking.how
    snapshot = findings(found)["snapshot"]
    assert snapshot.verdict is Verdict.ABSENT
    assert findings(found)["compare"].verdict is (Verdict.ABSENT if what == "yama" else Verdict.OK)
    assert findings(found)["auto"].detail.startswith("chooses compare")


def test_little_memory_for_copies_is_named(tmp_path, leave_memory):
    leave_memory(10 << 20)
    found = findings(report(tmp_path))["memory"]
    assert found.verdict is Verdict.ABSENT
    assert "10.0 MiB to this control group; copies of a snapshot may take 256 MiB" in found.detail
    assert "--capture-memory" in found.how


def test_what_proc_does_not_tell_is_a_finding_too(tmp_path):
    said = done(without_proc("doctor", tmp_path, "--json"))
    found = findings(parallel_fixedram.from_json(DoctorReport, said.json))
    for what in ("seccomp", "CAP_SYS_PTRACE"):
        assert found[what].verdict is Verdict.ABSENT
        assert found[what].detail.startswith("cannot be seen: '/proc/")


class TestInASandbox:
    """Filters stay with the process that installs them."""

    def test_without_ptrace_auto_compares(self, tmp_path):
        """Nothing that can be asked says so: it is tried."""
        require_userfaultfd()
        report(tmp_path)  # everything is imported
        with Puppet(parallel_fixedram.doctor, first=lambda: install(only(SYS_PTRACE, EPERM))) as process:
            found = process.call(str(tmp_path))
        assert (found.ok, found.capture) == (True, "compare")
        watching = findings(found)["watching RAM"]
        assert watching.verdict is Verdict.ABSENT
        assert "operation not permitted" in watching.detail
        assert "--cap-add SYS_PTRACE" in watching.how
        assert findings(found)["reading RAM"].verdict is Verdict.OK

    def test_a_filter_that_nobody_may_read_is_in_the_way_of_snapshots_of_what_is_started_there(self, tmp_path):
        report(tmp_path)
        with Puppet(parallel_fixedram.doctor, first=lambda: install(only(1000, EPERM))) as process:
            found = process.call(str(tmp_path))
        assert (found.ok, found.capture) == (True, "compare")
        assert findings(found)["seccomp"].verdict is Verdict.ABSENT


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
class TestAsAUser:
    def found(self, folder):
        report(folder)  # everything is imported: the interpreter may be out of reach

        def become_nobody():
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)

        with Puppet(parallel_fixedram.doctor, first=become_nobody) as process:
            return process.call(".")

    @pytest.fixture(autouse=True)
    def inside(self, tmp_path, monkeypatch):
        """Paths to it may be closed to others; who is there is there."""
        monkeypatch.chdir(tmp_path)

    def test_rights_that_are_missing_are_named(self, tmp_path):
        tmp_path.chmod(0o777)
        found = findings(self.found(tmp_path))
        assert found["CAP_SYS_PTRACE"].verdict is Verdict.ABSENT
        assert "no more rights than this process" in found["CAP_SYS_PTRACE"].detail
        device = os.path.exists(userfaultfd.DEVICE) and os.stat(userfaultfd.DEVICE).st_mode & stat.S_IWOTH
        may = bool(device) or userfaultfd.is_for_everybody()
        assert found["/dev/userfaultfd"].verdict is (Verdict.OK if may else Verdict.ABSENT)
        if not may:
            assert "sysctl -w vm.unprivileged_userfaultfd=1" in found["/dev/userfaultfd"].how
            assert found["snapshot"].verdict is Verdict.ABSENT

    def test_a_folder_of_others_refuses_a_save(self, tmp_path):
        tmp_path.chmod(0o755)
        found = self.found(tmp_path)
        assert (found.ok, found.capture) == (False, "")
        files = findings(found)["new files"]
        assert files.verdict is Verdict.REFUSED
        assert "permission denied" in files.detail


class TestFolders:
    @pytest.mark.parametrize("kind", ["xfs", "ext4", "tmpfs"])
    def test_what_a_file_system_can_is_said_and_nothing_is_left_there(self, kind, tmp_path):
        try:
            with file_system(kind, str(tmp_path), 1 << 20) as folder:
                before = os.listdir(folder), os.stat(folder).st_mtime_ns
                found = findings(report(folder))
                assert (os.listdir(folder), os.stat(folder).st_mtime_ns) == before
        except tools.Missing as why:
            missing(str(why))
        assert found["file system"].detail.startswith(f"{kind} (")
        assert found["reflink"].verdict is (Verdict.OK if kind == "xfs" else Verdict.ABSENT)
        assert found["fallocate"].verdict is Verdict.OK
        assert ("memory" in found["fallocate"].detail) == (kind == "tmpfs")
        assert found["space"].verdict is found["new files"].verdict is Verdict.OK

    def test_one_that_is_full_refuses_a_save(self, tmp_path):
        with tmpfs(tmp_path / "full", "size=64k") as folder:
            (folder / "all").write_bytes(bytes(64 << 10))
            with untouched(folder):
                found = report(folder)
        space = findings(found)["space"]
        assert space.verdict is Verdict.REFUSED
        assert space.detail == "0 B free: no space left on device"
        assert "another FOLDER" in space.how

    def test_one_that_is_read_only_refuses_a_save_and_is_named_at_the_end(self, tmp_path):
        with tmpfs(tmp_path / "ro", "size=64k") as folder:
            remount(folder, "ro")
            result = call("doctor", folder)
        assert result.code == 1
        assert "read-only file system" in result.out
        assert result.out.endswith("\na save would be refused: new files\n")

    def test_one_that_is_not_ours_to_write_to_does_so_too(self, tmp_path):
        (tmp_path / "closed").mkdir(mode=0o500)
        result = run("doctor", tmp_path / "closed", preexec_fn=without_override)
        assert (result.code, result.err) == (1, "")
        assert "  refused new files" in result.out

    def test_what_writes_cost_is_known_for_a_while(self, tmp_path, monkeypatch):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        monkeypatch.setattr(calibrate, "measure", lambda _folder: ASSUMED)
        found = findings(report(tmp_path))["cost model"]
        assert found.verdict is Verdict.ABSENT
        assert "--calibrate" in found.how
        calibrate.device_model(str(tmp_path), 0, fresh=True)
        for earlier, verdict, detail in (
            (3 * 3600, Verdict.OK, "measured 3 h ago, used for 7 d more"),
            (8 * 86400, Verdict.ABSENT, "not measured yet"),
        ):
            known = user_cache.read("devices.json")
            user_cache.write(
                "devices.json", {name: {**each, "measured": time.time() - earlier} for name, each in known.items()}
            )
            found = findings(report(tmp_path))["cost model"]
            assert found.verdict is verdict
            assert found.detail.startswith(detail)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["nowhere"], "cannot open the folder 'nowhere': no such file or directory"),
        (["file"], "cannot open the folder 'file': not a directory"),
        (["--qmp", "tcp:localhost:4444"], "is not a unix socket"),
        (["--disks", "none"], "--disks is for --qmp: nothing else has disks"),
        (["--pid", "1"], "--pid and --qmp-timeout are for --qmp"),
    ],
)
def test_what_is_asked_wrongly_is_no_verdict(tmp_path, monkeypatch, argv, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    with untouched(tmp_path):
        refused(call("doctor", *argv), 2, message)


class TestMonitors:
    def test_a_socket_where_nobody_listens_is_a_verdict(self, tmp_path):
        found = report(tmp_path, "--qmp", tmp_path / "qmp")
        assert (found.ok, found.capture) == (False, "")
        monitor = findings(found)["monitor"]
        assert monitor.verdict is Verdict.REFUSED
        assert "no such file or directory" in monitor.detail
        assert "-qmp unix:PATH" in monitor.how
        assert [section.name for section in found.sections] == ["host", "folder", "QEMU", "save"]

    @pytest.mark.parametrize(
        "answers",
        [{}, {"*": closes}, {"*": dies}, {"*": returns("nonsense")}, {"*": returns([{"a": 1}, 2])}],
        ids=["refuses", "closes", "dies", "text", "list"],
    )
    def test_whatever_it_answers_is_a_verdict(self, tmp_path, answers):
        with FakeQmp(tmp_path / "qmp", answers | {"qmp_capabilities": returns({})}):
            found = report(tmp_path, "--qmp", tmp_path / "qmp")
        assert (found.ok, found.capture) == (False, "")
        assert findings(found)["monitor"].verdict is Verdict.OK
        for what in ("machine", "state", "migration", "process", "auto"):
            assert findings(found)[what].verdict is Verdict.REFUSED


@pytest.fixture
def shown(terminal, capsys):
    """The lines that a report is on a terminal of so many columns, or in a pipe."""

    def lines(columns, found):
        out = terminal("stdout", columns) if columns else None
        command._print(found)
        return (out.getvalue() if out else capsys.readouterr().out).splitlines()

    return lines


FOUND = DoctorReport(
    folder="/backup",
    qmp="",
    ok=False,
    capture="",
    sections=(
        Section(
            name="host",
            findings=(
                Finding(what="yama", verdict=Verdict.OK, detail="lets"),
                Finding(
                    what="userfaultfd", verdict=Verdict.ABSENT, detail="none " * 12 + "there", how="get " * 12 + "it"
                ),
            ),
        ),
        Section(name="folder", findings=(Finding(what="space", verdict=Verdict.REFUSED, detail="0 B free"),)),
    ),
)


def test_a_line_is_a_verdict_a_thing_and_what_there_is_to_say_and_below_it_how_to_get_it(shown):
    assert shown(None, FOUND) == [
        "host",
        "  ok      yama         lets",
        "  absent  userfaultfd  " + "none " * 12 + "there",
        "                       -> " + "get " * 12 + "it",
        "folder /backup",
        "  refused space  0 B free",
        "a save would be refused: space",
    ]


@pytest.mark.parametrize("columns", [80, 60, 40])
def test_it_folds_where_the_terminal_is_narrow(shown, columns):
    whole = shown(None, FOUND)
    lines = shown(columns, FOUND)
    assert max(map(len, lines)) <= columns
    assert "" not in lines
    assert " ".join(" ".join(lines).split()) == " ".join(" ".join(whole).split())
