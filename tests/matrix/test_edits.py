"""Does the suite notice? Our own code is edited in a copy, one named mistake at a time, and a test has to fail.

It is one of the fast suite, or one of a row of this matrix: that shows that the row can find something.

Every edit is one that somebody could make in good faith. The list grows with each fault that the other rows find.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from support import faults
from support.cli import dying_with_us
from support.fault_matrix import Count

import parallel_fixedram

pytestmark = pytest.mark.slow

PACKAGE = Path(parallel_fixedram.__file__).parent
ROOT = Path(__file__).parents[2]
TESTS_FAILED = 1  # pytest.ExitCode


@dataclass(frozen=True, kw_only=True)
class Edit:
    """A mistake.

    Attributes:
        module: of the package.
        old, new: what stands there, once, and what is put in its place.
        tests: a file of the fast suite that has to notice, or of the fault matrix.
        only: which of its tests, as for ``pytest -k``.
        row: whether they are tests of this matrix, which takes root: then the fast suite need not notice.
    """

    module: str
    old: str
    new: str
    tests: str
    only: str = ""
    row: bool = False


EDITS = {
    "the file is not synced": Edit(
        module="image/draft.py",
        old="            self.buffered.sync()\n",
        new="            pass\n",
        tests="engine/test_save.py",
    ),
    "the folder is not synced": Edit(
        module="host/files/publish.py",
        old="            os.fsync(self._folder)\n",
        new="            pass\n",
        tests="host/test_publish.py",
    ),
    "a file that is there is written over": Edit(
        module="host/files/publish.py",
        old="        if self.overwrite:\n            os.rename",
        new="        if True:\n            os.rename",
        tests="host/test_publish.py",
    ),
    "what failed is left behind": Edit(
        module="host/files/publish.py",
        old="if self.fd >= 0 and not self.published:",
        new="if False:",
        tests="host/test_publish.py",
    ),
    "two may write one file": Edit(
        module="host/files/part.py",
        old="        if not try_lock(fd):\n",
        new="        if False:\n",
        tests="host/test_publish.py",
    ),
    "a file is as readable as the umask lets it be": Edit(
        module="host/files/part.py",
        old="            os.fchmod(fd, 0o600)\n",
        new="            os.fchmod(fd, 0o666 & ~os.umask(os.umask(0)))\n",
        tests="host/test_publish.py",
    ),
    "a short write is taken for a whole one": Edit(
        module="host/files/channel.py",
        old="            data, offset = data[done:], offset + done\n",
        new="            return\n",
        tests="host/test_channel.py",
    ),
    "a short gathered write begins again too late": Edit(
        module="host/files/channel.py",
        old="            if done:\n                pieces[0] = pieces[0][done:]\n",
        new="            if done:\n                pieces.pop(0)\n",
        tests="host/test_channel.py",
    ),
    "a page array may end past the file": Edit(
        module="format/mapped_ram.py",
        old='("bitmap", saved.bitmap_end), ("page array", saved.pages_end)',
        new='("bitmap", saved.bitmap_end),',
        tests="format/test_mapped_ram.py",
    ),
    "blocks may lie on each other": Edit(
        module="format/mapped_ram.py",
        old="        if place < place_end:\n",
        new="        if False:\n",
        tests="format/test_mapped_ram.py",
    ),
    "any number of blocks is read": Edit(
        module="format/mapped_ram.py",
        old="        if len(blocks) == MAX_BLOCKS:\n",
        new="        if False:\n",
        tests="format/test_mapped_ram.py",
    ),
    "a hole is punched while its neighbours are still being written": Edit(
        module="engine/pages/writer.py",
        old="        self.settle(tally)  # a write along with neighbours must not come after the hole\n",
        new="",
        tests="engine/test_write.py",
    ),
    "what turned zero stays in the file": Edit(
        module="engine/pages/writer.py",
        old="emptied = store, runs_of_ones(stale & (store ^ 1))",
        new="emptied = store, runs_of_ones(stale & 0)",
        tests="engine/test_write.py",
    ),
    "a page is hashed only after it was written": Edit(
        module="engine/pages/changed_job.py",
        old="                self._hashes.forget(block, first, found[part])\n",
        new="                pass\n",
        tests="engine/test_compare.py",
    ),
    "a write is let through before it is marked as copied": Edit(
        module="engine/capture/snapshot/protocol.py",
        old="            marks.copied[group] = 1\n            yield Step.MARKED\n",
        new="            unprotect()\n            yield Step.MARKED\n            marks.copied[group] = 1\n",
        tests="engine/snapshot/test_protocol.py",
    ),
    "a copy of what was let through meanwhile is written": Edit(
        module="engine/capture/snapshot/protocol.py",
        old="    found: NDArray[np.uint8] = ((marks.copied[groups] | marks.written[groups]) == 0).view(np.uint8)\n",
        new="    found: NDArray[np.uint8] = (marks.written[groups] == 0).view(np.uint8)\n",
        tests="engine/snapshot/test_protocol.py",
    ),
    "a guest stays stopped when the save fails": Edit(
        module="engine/capture/pause.py",
        old="                self.torn = self._machine.resume()\n",
        new="                self.torn = None if error else self._machine.resume()\n",
        tests="engine/test_pause.py",
    ),
    "workers live on without their coordinator": Edit(
        module="host/linux.py",
        old="    _check(_libc.prctl(PR_SET_PDEATHSIG, signum, 0, 0, 0))\n",
        new="",
        tests="host/test_processes.py",
    ),
    "a guardian that is disarmed acts all the same": Edit(
        module="host/processes/guardian.py",
        old="        self._armed[0] = 0\n",
        new="",
        tests="host/test_guardian.py",
    ),
    "a page that does not match its digest is good": Edit(
        module="engine/pages/digest.py",
        old="        wrong: Bits = (stored != page_digests(pages, present)).view(np.uint8)\n",
        new="        wrong: Bits = np.zeros(len(present), np.uint8)\n",
        tests="engine/test_verify.py",
    ),
    "heads and bitmaps are not held against their digests": Edit(
        module="image/verify.py",
        old="    for extent in trailer.extents:\n",
        new="    for extent in ():\n",
        tests="engine/test_verify.py",
    ),
    "nobody sees that libvirt's header was edited": Edit(
        module="image/verify.py",
        old="check_edits(image, trailer) + check_ranges(image, trailer)",
        new="check_ranges(image, trailer)",
        tests="engine/test_libvirt_image.py",
    ),
    "an image that libvirt did not complete is good": Edit(
        module="format/libvirt_image.py",
        old="        if not self.complete:\n",
        new="        if False:\n",
        tests="format/test_libvirt_image.py",
    ),
    "what was written is not compared with what is there": Edit(
        module="host/files/channel.py",
        old="            if piece.tobytes() != back[: len(piece)].tobytes():",
        new="            if False:",
        tests="host/test_channel.py",
    ),
    "the file is not synced, seen by what a power cut leaves": Edit(
        module="image/draft.py",
        old="            self.buffered.sync()\n",
        new="            pass\n",
        tests="matrix/test_crash_states.py",
        only="new_file or direct",
        row=True,
    ),
    "a sync that failed is tried again": Edit(
        module="host/files/channel.py",
        old="            os.fsync(self.fd)\n        except OSError as error:\n",
        new="            os.fsync(self.fd)\n        except OSError:\n            os.fsync(self.fd)\n"
        "        except ValueError as error:\n",
        tests="matrix/test_failing_disk.py",
        only="one and write",
        row=True,
    ),
    "a direct write that stops early is whole": Edit(
        module="host/files/aio.py",
        old='np.flatnonzero(events["res"] != self._lengths[slots])',
        new='np.flatnonzero(events["res"] < 0)',
        tests="matrix/test_every_call.py",
        only="any_short_write and third",
        row=True,
    ),
    "the descriptor of the folder stays open": Edit(
        module="host/files/publish.py",
        old="            for fd in (self.fd, self._direct_fd, self._folder):\n",
        new="            for fd in (self.fd, self._direct_fd):\n",
        tests="matrix/test_every_call.py",
        only="without_facts",
        row=True,
    ),
    "a file that gets a trailer stays half changed": Edit(
        module="image/add_trailer.py",
        old="                if resized:\n",
        new="                if False:\n",
        tests="matrix/test_calls_in_place.py",
        only="gets_a_trailer_is_what_it_was",
        row=True,
    ),
    "a footer may be there without the rest": Edit(
        module="image/add_trailer.py",
        old="    channel.sync()\n    write_footer(channel, trailer)\n",
        new="    write_footer(channel, trailer)\n",
        tests="engine/test_add_trailer.py",
        only="stable_storage",
    ),
    "what is locked is removed": Edit(
        module="host/files/left_file.py",
        old="        if locked and not part.try_lock(fd):\n",
        new="        if False:\n",
        tests="cli/test_clean.py",
        only="goes_by_its_lock",
    ),
    "an error of the system leaves without a word where descriptors run out": Edit(
        module="host/injection/inject.py",
        old='        raise HostError.from_os(f"cannot stop process {pid}", error) from error\n    with ours:\n',
        new="        raise\n    with ours:\n",
        tests="host/test_injection.py",
        only="run_out",
    ),
    "a file has its name from the beginning": Edit(
        module="host/files/publish.py",
        old='        self._part = f".{self._name}.part"\n',
        new="        self._part = self._name\n",
        tests="matrix/test_any_moment.py",
        only="any_number_of_calls",
        row=True,
    ),
    "the experimental flag lifts every rule": Edit(
        module="core/capabilities.py",
        old="if rule.refuses(on) and not (experimental and rule.experimental):",
        new="if rule.refuses(on) and not experimental:",
        tests="core/test_capabilities.py",
    ),
    "windows are joined where pages are copied into room for one": Edit(
        module="engine/pages/writer.py",
        old="return self._guest_blocks[block].source.views_stay_valid and self._staging is None",
        new="return self._guest_blocks[block].source.views_stay_valid",
        tests="engine/test_save.py",
    ),
    "windows that are joined have too many pages": Edit(
        module="engine/pages/window.py",
        old="        if joined and count <= room:",
        new="        if joined and found:",
        tests="engine/test_window.py",
    ),
}


BY_THE_MATRIX = {
    "fewer bytes than were asked for are taken": Edit(
        module="format/stream.py",
        old="        data = self.peek(length)\n        if len(data) < length:\n",
        new="        data = self.peek(length)\n        if False:\n",
        tests="matrix/test_any_bytes.py",
        only="random and stream",
    ),
    "the length of a device may be endless": Edit(
        module="format/vmdesc.py",
        old="ValueError, OverflowError, RecursionError",
        new="ValueError, RecursionError",
        tests="matrix/test_any_bytes.py",
        only="random and VM",
    ),
    "the end of a section is looked for in the hole behind a file": Edit(
        module="format/sections.py",
        old="    while start < end:\n",
        new="    while True:\n",
        tests="matrix/test_any_files.py",
        only="4",
    ),
    "heads and bitmaps are not held against their digests": replace(
        EDITS["heads and bitmaps are not held against their digests"],
        tests="matrix/test_any_files.py",
        only="0",
    ),
    "what a disk is made of is what QEMU says": Edit(
        module="machines/qemu/drives.py",
        old="        if not isinstance(graph := graphs.pop(), dict):\n",
        new="        graph = graphs.pop()\n        if False:\n",
        tests="matrix/test_any_answers.py",
        only="place and nodes",
    ),
    "the machine type may be another one than that of the QEMU which loads the file": Edit(
        module="boot/incoming.py",
        old="    if (there := discovery.machine_type(monitor)) != machine:\n",
        new="    if (there := discovery.machine_type(monitor)) == '':\n",
        tests="matrix/test_against_qemu.py",
        only="one_bit",
    ),
    "a disk whose overlay is out of sight has none": Edit(
        module="machines/qemu/commit.py",
        old="    if not paths and drive.disk.node.startswith(PREFIX):\n",
        new="    if False:\n",
        tests="matrix/test_read_only.py",
        only="in_the_place",
    ),
    "a block may be longer, or shorter, than that of the QEMU which loads it": Edit(
        module="boot/incoming.py",
        old="        if other != length:\n",
        new="        if False:\n",
        tests="matrix/test_against_qemu.py",
        only="another_size",
    ),
    "a link under the name of the part is followed": Edit(
        module="host/files/part.py",
        old="os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW",
        new="os.O_CREAT",
        tests="matrix/test_hostile_folders.py",
        only="stands_under",
    ),
}
"""Each of the rows that take any bytes is shown to find something; of the two about a stock QEMU no fast test knows."""


@pytest.mark.parametrize("name", EDITS)
def test_a_test_fails_where(name: str, tmp_path: Path, count: Count) -> None:
    edit = EDITS[name]
    if edit.row and (faults.why_not() or os.geteuid()):
        pytest.skip("only root can mount a file system")
    check_noticed(edit, tmp_path)
    count("our own code is edited", 1)


@pytest.mark.parametrize("name", BY_THE_MATRIX)
def test_a_row_of_the_matrix_fails_where(name: str, tmp_path: Path, count: Count) -> None:
    check_noticed(BY_THE_MATRIX[name], tmp_path)
    count("our own code is edited", 1)


def check_noticed(edit: Edit, tmp_path: Path) -> None:
    """Edit a copy of the package, and see a test fail."""
    shutil.copytree(PACKAGE, tmp_path / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__"))
    module = tmp_path / PACKAGE.name / edit.module
    code = module.read_text()
    assert code.count(edit.old) == 1, f"{edit.module} has no longer what is to be edited there"
    module.write_text(code.replace(edit.old, edit.new))
    found = run(tmp_path, edit)
    assert found.returncode == TESTS_FAILED, found.stdout[-2000:] + found.stderr[-2000:]


def run(folder: Path, edit: Edit) -> subprocess.CompletedProcess[str]:
    """The tests, with the package in that folder; up to the first failure."""
    argv = [sys.executable, "-P", "-m", "pytest", "-q", "-x", "-n0", "-p", "no:cacheprovider", "--timeout", "120"]
    argv += ["--hypothesis-profile=no-shrinking", f"tests/{edit.tests}"]
    if not edit.tests.startswith("matrix/"):
        argv += ["-m", "not slow and not qemu"]
    if edit.only:
        argv += ["-k", edit.only]
    env = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        argv, cwd=ROOT, env=env, preexec_fn=dying_with_us(), check=False, capture_output=True, text=True
    )
