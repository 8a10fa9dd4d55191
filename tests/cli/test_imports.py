"""What a command imports: only what it needs, because a small save takes no longer than an import or two."""

import os

import pytest
from support.cli import done, run

SLOW = {
    "asyncio",
    "concurrent",
    "msgspec",
    "multiprocessing",
    "numpy",
    "psutil",
    "qemu",
    "rich",
    "subprocess",
    "xxhash",
}
NOT_WITHOUT_A_QEMU = {"asyncio", "parallel_fixedram.boot", "parallel_fixedram.machines.qemu", "qemu", "subprocess"}
NOT_FOR_PAGES = {"multiprocessing", "numpy.ma", "numpy.random", "psutil", "rich", "tempfile"}

_WATCHED = """
import sys
from parallel_fixedram.cli.main import main
try:
    code = main()
except SystemExit as end:
    code = end.code
with open({path!r}, "w") as file:
    print(*sys.modules, sep="\\n", file=file)
sys.exit(code)
"""


@pytest.fixture
def imported(tmp_path):
    """Run the command in a process of its own; the names of all modules that it imported."""

    def modules(*argv):
        path = tmp_path / "MODULES"
        done(run(*argv, python=("-c", _WATCHED.format(path=str(path))), fresh=True))
        return set(path.read_text().split())

    return modules


@pytest.fixture
def ram(tmp_path):
    path = tmp_path / "ram"
    path.write_bytes(os.urandom(3 << 20))
    return path


@pytest.mark.parametrize("argv", [["--help"], ["save", "--help"], ["caps"]])
def test_what_moves_no_page_imports_nothing_slow(imported, argv):
    assert imported(*argv) & SLOW == set()


def test_a_verb_does_not_pay_for_the_options_of_others(imported):
    verbs = {name.removeprefix("parallel_fixedram.cli.") for name in imported("caps")}
    assert "caps" in verbs
    assert not verbs & {"save", "restore", "clone", "verify", "demo"}


def test_what_has_nothing_to_do_with_a_qemu_imports_nothing_of_it(imported, ram, tmp_path):
    file, other, more = tmp_path / "f.mr", tmp_path / "g.mr", ("--channels", "2", "--experimental-multifd")
    for argv in (
        ("save", file, "--ram", f"m={ram}", *more),
        ("save", other, "--guest", "dense,size=3MiB", *more),
        ("restore", file, "--ram", f"m={tmp_path / 'restored'}", "--verify", *more),
        ("verify", file),
        ("inspect", file),
        ("diff", file, file),
    ):
        modules = imported(*argv)
        assert modules & NOT_WITHOUT_A_QEMU == set(), argv
        assert modules & NOT_FOR_PAGES == set(), argv


def test_numpy_starts_no_threads_for_linear_algebra(ram, tmp_path, monkeypatch):
    """On a host with a single processor it would start none anyway."""
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    done(run("save", tmp_path / "f.mr", "--ram", f"m={ram}"))
    code = "import os; from parallel_fixedram.cli.main import main; main(); print(len(os.listdir('/proc/self/task')))"
    result = done(run("inspect", tmp_path / "f.mr", python=("-c", code), fresh=True))
    assert result.out.splitlines()[-1] == "1"
