"""Whether anybody else has a file open: told by the kernel, and who it is as far as that can be seen."""

import os
import subprocess
import sys

import pytest
from support.qemu_tools import with_own_mounts
from support.somebody_else import as_nobody

from parallel_fixedram.core.errors import HostError
from parallel_fixedram.host.files import holders
from parallel_fixedram.host.files.holders import who_has_open

OPENS = {
    "to read": "file = open(sys.argv[1], 'rb')",
    "to write": "file = open(sys.argv[1], 'ab')",
    "mapped": "f = open(sys.argv[1], 'rb'); m = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ); f.close()",
}


@pytest.fixture
def fd(tmp_path):
    (tmp_path / "file").write_bytes(bytes(4096))
    fd = os.open(tmp_path / "file", os.O_RDONLY)
    yield fd
    os.close(fd)


@pytest.fixture(params=[True, False], ids=["by a lease", "by /proc"])
def way(request):
    if not request.param:
        request.getfixturevalue("without_leases")


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("how", OPENS.values(), ids=OPENS)
def test_a_process_that_has_it_open_is_named(tmp_path, fd, how):
    code = f"import mmap, sys; {how}; print(flush=True); sys.stdin.read()"
    argv = [sys.executable, "-S", "-c", code, tmp_path / "file"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.read(1)
        assert who_has_open(fd).startswith(f"process {process.pid} (python")
        process.communicate()


@pytest.mark.usefixtures("way")
def test_our_own_descriptor_is_nobody_and_another_one_of_ours_is(tmp_path, fd, monkeypatch):
    real = holders.os.listdir
    monkeypatch.setattr(holders.os, "listdir", lambda path: [str(os.getpid())] if path == "/proc" else real(path))
    with open(tmp_path / "file"):
        assert who_has_open(fd).startswith(f"process {os.getpid()} (")
    assert who_has_open(fd) == ""


def test_who_opens_it_meanwhile_waits_and_we_live_through_being_told(tmp_path, fd):
    assert who_has_open(fd) == ""
    with pytest.raises(BlockingIOError):
        os.open(tmp_path / "file", os.O_RDWR | os.O_NONBLOCK)


ASK = """
import os, sys
from parallel_fixedram.core.errors import HostError
from parallel_fixedram.host.files.holders import who_has_open
try:
    print(who_has_open(os.open(sys.argv[1], os.O_RDONLY)) or "nobody")
except HostError as error:
    print(error.message)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make these namespaces")
def test_without_proc_the_lease_still_tells_and_one_who_cannot_be_seen_holds_it_all_the_same(tmp_path):
    def said():
        hide = ["sh", "-c", 'mount -t tmpfs none /proc && exec "$@"', "sh"]
        command = [*with_own_mounts(), *hide, sys.executable, "-P", "-c", ASK, tmp_path / "file"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    (tmp_path / "file").write_bytes(bytes(4096))
    assert said() == "nobody"
    with open(tmp_path / "file"):
        assert said() == "a process that cannot be seen from here has it open"


def test_without_leases_a_process_that_does_not_tell_leaves_it_open_who_has_it(fd):
    """As for somebody who gets no lease of another's file, and may not look into the processes of others."""
    os.fchmod(fd, 0o644)
    with pytest.raises(HostError, match="cannot tell whether a process has it open"):
        as_nobody(lambda: who_has_open(fd))
