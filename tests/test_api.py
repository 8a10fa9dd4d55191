"""The public names: all there, all documented, and imported only when they are asked for."""

import ast
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import parallel_fixedram
from parallel_fixedram import boot

SOURCE = Path(parallel_fixedram.__file__)
SLOW_MODULES = ("numpy", "psutil", "rich", "xxhash")


def type_checking_imports():
    """What type checkers take the package to offer: name -> module."""
    for node in ast.parse(SOURCE.read_text()).body:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            return {
                alias.name: each.module
                for each in node.body
                if isinstance(each, ast.ImportFrom)
                for alias in each.names
            }
    raise AssertionError("no TYPE_CHECKING block")


@pytest.mark.parametrize("name", parallel_fixedram.__all__)
def test_every_public_name_is_there_and_documented(name):
    value = getattr(parallel_fixedram, name)
    assert value.__name__ == name
    assert inspect.getdoc(value)
    assert not value.__doc__.startswith(f"{name}("), "the docstring that dataclass makes up says nothing"
    if inspect.isfunction(value):
        for parameter in inspect.signature(value).parameters.values():
            assert parameter.annotation is not parameter.empty


def test_type_checkers_and_the_lazy_table_agree():
    lazy = {name: f"parallel_fixedram.{home}" for home, names in parallel_fixedram._HOMES.items() for name in names}
    assert type_checking_imports() == lazy
    assert sorted(lazy) == sorted(parallel_fixedram.__all__)
    assert len(set(parallel_fixedram.__all__)) == len(parallel_fixedram.__all__)


@pytest.mark.parametrize("name", parallel_fixedram.__all__)
def test_a_public_name_comes_from_where_the_table_says(name):
    home = importlib.import_module(type_checking_imports()[name])
    assert getattr(parallel_fixedram, name) is getattr(home, name)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'parallel_fixedram' has no attribute 'load'"):
        _ = parallel_fixedram.load
    with pytest.raises(ImportError):
        exec("from parallel_fixedram import load")


def test_a_star_import_brings_every_public_name():
    names = {}
    exec("from parallel_fixedram import *", names)
    assert set(parallel_fixedram.__all__) <= set(names)


def test_every_error_says_in_its_exit_code_who_has_to_act():
    codes = {
        "RequestError": 2,
        "CapabilityError": 2,
        "ContentsDiffer": 1,
        "FormatError": 3,
        "MachineError": 4,
        "HostError": 5,
        "WorkerError": 5,
        "DurabilityError": 6,
    }
    for name, code in codes.items():
        error = getattr(parallel_fixedram, name)
        assert issubclass(error, parallel_fixedram.FixedRamError)
        assert error.exit_code == code


@pytest.mark.parametrize(
    "statement",
    [
        "import parallel_fixedram",
        "import parallel_fixedram; parallel_fixedram.RequestError, parallel_fixedram.Profile",
        "from parallel_fixedram.cli.main import build_parser; build_parser()",
        "from parallel_fixedram.cli.main import build_parser; build_parser().parse_args(['save', 'f', '--ram', 'a=b'])",
    ],
)
def test_what_asks_for_no_work_imports_nothing_slow(statement):
    check = f"{statement}; import sys; sys.exit(repr([name for name in {SLOW_MODULES} if name in sys.modules] or ''))"
    answer = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=False)
    assert answer.stderr == "''\n"


def test_the_example_in_the_docstring_works(tmp_path, capsys):
    example = inspect.cleandoc(parallel_fixedram.__doc__).partition("::\n\n")[2]
    code = inspect.cleandoc(example).replace("/tmp/", f"{tmp_path}/").replace("256MiB", "4MiB")
    assert "with open_guest(" in code
    assert str(tmp_path) in code
    exec(compile(code, "docstring", "exec"), {})
    seconds, ok = capsys.readouterr().out.split()
    assert float(seconds) > 0
    assert ok == "True"


def test_a_program_can_do_all_that_the_command_does(tmp_path):
    image, copy = str(tmp_path / "guest.mr"), str(tmp_path / "copy")
    with parallel_fixedram.open_guest("hot,size=1MiB,steps=3") as guest:
        report = parallel_fixedram.save(guest, image, direct_io="off", durability=parallel_fixedram.Durability.NONE)
        assert parallel_fixedram.verify(image, ram={"pc.ram": f"/proc/self/fd/{guest.memfd}"}).ok
    assert parallel_fixedram.to_json(report)["verb"] == "save"
    parallel_fixedram.restore(image, {"pc.ram": copy}, check_digests=True)
    with parallel_fixedram.open_ram({"pc.ram": copy}) as ram:
        parallel_fixedram.save(ram, image, overwrite=True, capabilities={"mapped-ram": True})
    with parallel_fixedram.open_ram([parallel_fixedram.RamFile(idstr="half", path=copy, length=1 << 19)]) as half:
        assert parallel_fixedram.save(half, str(tmp_path / "half.mr")).bytes.ram == 1 << 19
    assert parallel_fixedram.diff(image, image).equal
    with parallel_fixedram.open_image(image) as opened:
        assert isinstance(opened, parallel_fixedram.Image)
        assert opened.read_pages("pc.ram", 0, 1) == Path(copy).read_bytes()[:4096]


def test_a_guest_is_opened_by_the_gate_and_closed_by_the_save(tmp_path):
    opened = []

    def machine():
        opened.append(parallel_fixedram.open_guest("zero,size=4K"))
        return opened[0]

    with pytest.raises(parallel_fixedram.CapabilityError):
        parallel_fixedram.save(machine, str(tmp_path / "f.mr"), channels=2)
    assert opened == []
    parallel_fixedram.save(machine, str(tmp_path / "f.mr"))
    assert opened[0].pid == -1
    with pytest.raises(parallel_fixedram.RequestError, match="exists"):
        parallel_fixedram.save(machine, str(tmp_path / "f.mr"))
    assert len(opened) == 1


def test_a_progress_function_hears_of_every_byte(tmp_path):
    heard = []
    image = str(tmp_path / "f.mr")
    with parallel_fixedram.open_guest("dense,size=4MiB") as guest:
        parallel_fixedram.save(guest, image, progress=lambda *what: heard.append(what))
    parallel_fixedram.verify(image, progress=lambda *what: heard.append(what))
    for phase in ("write", "digests"):
        steps = [(done, total) for name, done, total in heard if name == phase]
        assert steps[-1] == (4 << 20, 4 << 20)
        assert sorted(steps) == steps


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"profile": "qemu-1.0"}, "profile is 'qemu-1.0', expected one of fixed-ram, qemu-10.0"),
        ({"direct_io": "maybe"}, "direct_io is 'maybe', expected one of on, off, auto"),
        ({"durability": "some"}, "durability is 'some', expected one of full, none"),
        ({"live": True, "max_rounds": 0}, "0 rounds, at least 1 is needed"),
    ],
)
def test_an_option_of_save_that_makes_no_sense_is_a_request_error(tmp_path, options, message):
    with pytest.raises(parallel_fixedram.RequestError, match=message):
        parallel_fixedram.save(lambda: pytest.fail("opened"), str(tmp_path / "f.mr"), **options)


def test_a_profile_that_there_is_not_is_a_request_error_where_a_qemu_would_be_started():
    for start in (boot.restore_guest, boot.plan_restore):
        with pytest.raises(parallel_fixedram.RequestError, match=r"profile is 'qemu-1\.0'"):
            start("f.mr", ["qemu"], profile="qemu-1.0")


def test_numbers_that_make_no_sense_are_request_errors(tmp_path):
    image = str(tmp_path / "f.mr")
    with parallel_fixedram.open_guest("dense,size=8K") as guest:
        parallel_fixedram.save(guest, image)
    with pytest.raises(parallel_fixedram.RequestError, match="-1 workers"):
        parallel_fixedram.verify(image, channels=-1)
    with pytest.raises(parallel_fixedram.RequestError, match="offset -4096"):
        parallel_fixedram.open_ram([parallel_fixedram.RamFile(idstr="m", path=image, offset=-4096)])
    to = parallel_fixedram.Destination(path=str(tmp_path / "new"), offset=-4096)
    with pytest.raises(parallel_fixedram.RequestError, match="is negative"):
        parallel_fixedram.restore(image, {"pc.ram": to})
    assert not (tmp_path / "new").exists()
