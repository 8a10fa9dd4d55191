"""The public names: all there, all documented, and imported only when they are asked for."""

import ast
import importlib
import inspect
import json
import os
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
from support import saving
from support.examples import some_of
from support.watched import require_userfaultfd

import parallel_fixedram
from parallel_fixedram.host import linux
from parallel_fixedram.verbs import restore_guest

SOURCE = Path(parallel_fixedram.__file__)
SLOW_MODULES = ("msgspec", "numpy", "psutil", "rich", "xxhash")


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


def test_every_public_name_is_there_and_documented():
    for name in parallel_fixedram.__all__:
        value = getattr(parallel_fixedram, name)
        assert value.__name__ == name
        assert inspect.getdoc(value), name
        assert not value.__doc__.startswith(f"{name}("), "the docstring that dataclass makes up says nothing"
        if inspect.isfunction(value):
            for parameter in inspect.signature(value).parameters.values():
                assert parameter.annotation is not parameter.empty, (name, parameter)


def test_type_checkers_and_the_lazy_table_agree():
    lazy = {name: f"parallel_fixedram.{home}" for home, names in parallel_fixedram._HOMES.items() for name in names}
    assert type_checking_imports() == lazy
    assert sorted(lazy) == sorted(parallel_fixedram.__all__)
    assert len(set(parallel_fixedram.__all__)) == len(parallel_fixedram.__all__)


def test_a_public_name_comes_from_where_the_table_says():
    homes = type_checking_imports()
    for name in parallel_fixedram.__all__:
        assert getattr(parallel_fixedram, name) is getattr(importlib.import_module(homes[name]), name), name


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


@pytest.mark.slow
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
        report = parallel_fixedram.save(
            guest,
            image,
            writing=parallel_fixedram.Writing(direct_io=parallel_fixedram.DirectIO.OFF),
            publishing=parallel_fixedram.Publishing(durability=parallel_fixedram.Durability.NONE),
        )
        assert parallel_fixedram.verify(image, ram={"pc.ram": f"/proc/self/fd/{guest.memfd}"}).ok
    assert parallel_fixedram.to_json(report)["verb"] == "save"
    parallel_fixedram.restore(image, {"pc.ram": copy}, check_digests=True)
    with parallel_fixedram.open_ram({"pc.ram": copy}) as ram:
        parallel_fixedram.save(
            ram,
            image,
            gate=parallel_fixedram.Gate(capabilities={"mapped-ram": True}),
            publishing=parallel_fixedram.Publishing(overwrite=True),
        )
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
        saving.save(machine, str(tmp_path / "f.mr"), channels=2)
    assert opened == []
    parallel_fixedram.save(machine, str(tmp_path / "f.mr"))
    assert opened[0].pid == -1
    with pytest.raises(parallel_fixedram.RequestError, match="exists"):
        parallel_fixedram.save(machine, str(tmp_path / "f.mr"))
    assert len(opened) == 1


def test_an_observer_hears_of_every_byte(tmp_path):
    heard = saving.Heard()
    image = str(tmp_path / "f.mr")
    with parallel_fixedram.open_guest("dense,size=4MiB") as guest:
        parallel_fixedram.save(guest, image, observer=heard)
    parallel_fixedram.verify(image, observer=heard)
    parallel_fixedram.diff(image, image, observer=heard)
    parallel_fixedram.restore(image, {"pc.ram": str(tmp_path / "ram")}, observer=heard)
    for phase in ("write", "digests", "diff", "restore"):
        steps = [(done, total) for name, done, total in heard.progress if name == phase]
        assert (steps[0], steps[-1]) == ((0, 4 << 20), (4 << 20, 4 << 20))
        assert sorted(steps) == steps


@pytest.mark.parametrize("method", ["phase", "advanced", "shard"])
def test_what_an_observer_raises_ends_the_save_and_leaves_no_file(tmp_path, method):
    def enough(*_):
        raise ZeroDivisionError("enough")

    observer = type("Impatient", (parallel_fixedram.Observer,), {method: enough})()
    with (
        parallel_fixedram.open_guest("dense,size=1MiB") as guest,
        pytest.raises(ZeroDivisionError, match="enough"),
    ):
        parallel_fixedram.save(guest, str(tmp_path / "f.mr"), observer=observer)
    assert os.listdir(tmp_path) == []


def test_the_example_in_the_docstring_of_observer_works(tmp_path, capsys):
    from parallel_fixedram.core import observer

    code = inspect.cleandoc(observer.__doc__).partition("::\n\n")[2]
    names = {"Observer": parallel_fixedram.Observer}
    exec(compile(textwrap.dedent(code), "docstring", "exec"), names)
    with parallel_fixedram.open_guest("dense,size=1MiB") as guest:
        parallel_fixedram.save(guest, str(tmp_path / "f.mr"), observer=names["Percent"]())
    assert capsys.readouterr().out.splitlines()[-1] == "100%"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"profile": "qemu-1.0"}, "profile is 'qemu-1.0', expected one of fixed-ram, qemu-10.0, qemu-11.1"),
        ({"direct_io": "maybe"}, "direct_io is 'maybe', expected one of on, off, auto"),
        ({"durability": "some"}, "durability is 'some', expected one of full, none"),
        ({"mode": "live"}, "capture is 'live', expected one of auto, snapshot, compare, rounds, stopped"),
        ({"max_rounds": 0}, "0 rounds, at least 1 is needed"),
        ({"queue_depth": -1}, "-1 writes in flight, at least 0 is needed"),
        ({"cache": "some"}, "cache is 'some', expected one of keep, drop"),
        ({"gap_pages": -1}, "-1 gap pages, at least 0 is needed"),
        ({"shard_pages": 0}, "0 shard pages, at least 1 is needed"),
        ({"shard_pages": -5}, "-5 shard pages, at least 1 is needed"),
        ({"channels": 0}, "expects a value between 1 and 255"),
    ],
)
def test_an_option_of_save_that_makes_no_sense_is_a_request_error(tmp_path, options, message):
    """Most of them when the value is made, those of the gate when it is asked; a machine is not opened for any."""
    for verb in (saving.save, saving.plan):
        with pytest.raises(parallel_fixedram.RequestError, match=message):
            verb(lambda: pytest.fail("opened"), str(tmp_path / "f.mr"), **options)


@pytest.mark.parametrize("verb", [saving.save, saving.plan])
def test_rounds_of_ram_without_a_dirty_log_can_neither_be_saved_nor_planned(tmp_path, verb):
    (tmp_path / "ram").write_bytes(bytes(4096))
    before = os.listdir(tmp_path)
    with (
        parallel_fixedram.open_ram({"ram": str(tmp_path / "ram")}) as ram,
        pytest.raises(parallel_fixedram.RequestError, match="this RAM has none"),
    ):
        verb(ram, str(tmp_path / "f.mr"), mode="rounds")
    assert os.listdir(tmp_path) == before


@pytest.mark.parametrize("mode", parallel_fixedram.CaptureMode)
def test_the_report_says_how_an_instant_was_captured_and_what_was_done_while_the_guest_ran(tmp_path, mode):
    if mode in ("auto", "snapshot"):
        require_userfaultfd()
    with parallel_fixedram.open_guest("dense,size=1MiB", running=True) as guest:
        report = parallel_fixedram.save(guest, str(tmp_path / "f.mr"), capture=parallel_fixedram.Capturing(mode=mode))
        assert guest.pause(), "it goes on"
    way = {"auto": "snapshot"}.get(mode, mode)
    assert report.choice.capture == way
    ran = [each.while_running for each in report.rounds]
    # 256 pages are too few for another one of rounds
    assert ran == {"snapshot": [True], "compare": [True, False]}.get(way, [False])
    assert (report.snapshot is not None) == (way == "snapshot")
    ends = [phase.started + phase.seconds for phase in report.phases]
    assert [phase.started for phase in report.phases] == pytest.approx([0.0, *ends[:-1]])
    assert ends[-1] == report.seconds.total
    assert parallel_fixedram.verify(str(tmp_path / "f.mr")).ok


def test_what_stands_still_is_not_compared_even_if_that_was_asked_for_and_the_report_says_why(tmp_path):
    with parallel_fixedram.open_guest("dense,size=8K") as guest:
        report = saving.save(guest, str(tmp_path / "f.mr"), mode="compare", direct_io="off", gap_pages=0)
    assert report.choice.capture == "stopped"
    assert report.choice.why == ("stopped: the guest stands still already, there is nothing to compare",)


CAPABILITIES = {"fixed-ram": {"fixed-ram": True}, "qemu-10.0": {"mapped-ram": True}, "qemu-11.1": {"mapped-ram": True}}


@pytest.mark.slow
@pytest.mark.usefixtures("four_pay")
@pytest.mark.parametrize(
    ("options", "channels", "why"),
    [
        ({}, 1, "1 channel: more is multifd: Fixed-ram migration is incompatible with multifd"),
        ({"experimental_multifd": True}, 4, "4 channels: "),
        ({"profile": "qemu-10.0"}, 4, "4 channels: "),
        ({"profile": "qemu-11.1"}, 4, "4 channels: "),
        (
            {"experimental_multifd": True, "capabilities": {"multifd": False}},
            1,
            "1 channel: more is multifd: capability multifd is off, but 2 channels need it",
        ),
        ({"experimental_multifd": True, "capabilities": {"multifd": True}}, 4, "4 channels: "),
    ],
)
def test_as_many_channels_are_chosen_as_pay_and_the_gate_allows(tmp_path, options, channels, why):
    """And the capabilities in the report are those of the channels that were used."""
    image = str(tmp_path / "f.mr")
    with parallel_fixedram.open_guest("dense,size=8MiB") as guest:
        planned = saving.plan(guest, image, channels=None, **options)
        report = saving.save(guest, image, channels=None, **options)
    for found in (planned.choice, report.choice):
        assert found.channels == channels
        assert [each for each in found.why if each.startswith(why)]
    assert report.channels == len(report.workers) == channels
    expected = dict(CAPABILITIES[options.get("profile", "fixed-ram")])
    if channels > 1:
        expected["multifd"] = True
    assert report.capabilities == {**options.get("capabilities", {}), **expected}
    assert parallel_fixedram.verify(image).ok


@pytest.mark.usefixtures("four_pay")
def test_multifd_that_was_asked_for_is_in_the_report_also_of_one_channel(tmp_path):
    options = {"experimental_multifd": True, "capabilities": {"multifd": True}}
    with parallel_fixedram.open_guest("zero,size=4K") as guest:
        report = saving.save(guest, str(tmp_path / "f.mr"), channels=None, **options)
    assert report.channels == 1
    assert report.capabilities == {"fixed-ram": True, "multifd": True}


def test_one_channel_is_used_unless_the_number_is_left_open(tmp_path):
    with parallel_fixedram.open_guest("dense,size=1MiB") as guest:
        report = saving.save(guest, str(tmp_path / "f.mr"), experimental_multifd=True)
    assert report.channels == 1
    assert not [why for why in report.choice.why if "channel" in why]


@pytest.fixture
def nothing_known(tmp_path, monkeypatch):
    """No command has measured anything yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.usefixtures("nothing_known")
@pytest.mark.parametrize(
    "spec", ["dense,size=8MiB", "random,size=16MiB,fraction=0.3", "zero,size=1MiB", "text,size=4MiB"]
)
@pytest.mark.parametrize(
    "options", some_of([{"direct_io": "off", "gap_pages": 3}, {}, {"direct_io": "on", "shard_pages": 500}], 3)
)
def test_a_plan_is_what_the_save_then_does_and_touches_neither_folder_nor_guest(tmp_path, spec, options):
    folder = tmp_path / "folder"
    folder.mkdir()
    image, before = str(folder / "f.mr"), folder.stat().st_mtime_ns
    with parallel_fixedram.open_guest(spec) as guest:
        taken = os.fstat(guest.memfd).st_blocks
        planned = saving.plan(guest, image, channels=None, experimental_multifd=True, **options)
        assert os.fstat(guest.memfd).st_blocks == taken
        assert (os.listdir(folder), folder.stat().st_mtime_ns) == ([], before)
        report = saving.save(guest, image, channels=None, experimental_multifd=True, **options)
    assert planned.choice.measured_by_predicted is None
    unmeasured = dict.fromkeys(("measured_write_seconds", "measured_stable_seconds", "measured_by_predicted"))
    assert planned.choice == replace(report.choice, **unmeasured)
    assert (planned.file, planned.waits, planned.ram) == (image, False, report.bytes.ram)
    assert planned.host == report.host
    assert planned.data_pages * 4096 <= planned.bytes
    assert report.bytes.written <= planned.bytes
    assert min(planned.runs, 1) <= planned.calls
    assert parallel_fixedram.from_json(parallel_fixedram.PlanReport, parallel_fixedram.to_json(planned)) == planned


@pytest.mark.slow
@pytest.mark.usefixtures("nothing_known")
def test_a_plan_that_measures_leaves_what_it_learned_to_the_save(tmp_path):
    with parallel_fixedram.open_guest("dense,size=1MiB") as guest:
        planned = saving.plan(guest, str(tmp_path / "f.mr"), calibrate=True)
        assert os.listdir(tmp_path) == ["cache"]
        report = parallel_fixedram.save(guest, str(tmp_path / "f.mr"))
    assert planned.choice.model["source"] == "measured"
    assert report.choice.model == {**planned.choice.model, "source": "cached"}
    assert report.choice.gap_pages == planned.choice.gap_pages
    assert report.choice.channels == planned.choice.channels


def test_a_plan_of_a_guest_that_runs_does_not_stop_it(tmp_path):
    with parallel_fixedram.open_guest("hot,size=4MiB,rate=16MiB", running=True) as guest:
        planned = parallel_fixedram.plan(guest, str(tmp_path / "f.mr"))
        assert planned.waits
        assert guest.pause(), "it ran all the time"
    assert os.listdir(tmp_path) == []


def test_a_plan_opens_what_it_is_told_to_and_closes_it(tmp_path):
    opened = []

    def machine():
        opened.append(parallel_fixedram.open_guest("zero,size=4K"))
        return opened[0]

    parallel_fixedram.plan(machine, str(tmp_path / "f.mr"))
    assert opened[0].pid == -1


def test_a_plan_for_a_file_that_exists_leaves_it_alone(tmp_path):
    (tmp_path / "f.mr").write_bytes(b"old")
    with parallel_fixedram.open_guest("dense,size=8K") as guest:
        assert parallel_fixedram.plan(guest, str(tmp_path / "f.mr")).data_pages == 2
    assert (tmp_path / "f.mr").read_bytes() == b"old"


def test_a_plan_is_for_the_folder_of_the_file_and_not_of_what_a_link_of_that_name_leads_to(
    tmp_path, costs, monkeypatch
):
    """A save replaces the link."""
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "old.mr").write_bytes(b"old")
    (tmp_path / "here" / "f.mr").symlink_to(tmp_path / "there" / "old.mr")
    monkeypatch.chdir(tmp_path / "here")
    with parallel_fixedram.open_guest("dense,size=8K") as guest:
        for target in ("f.mr", str(tmp_path / "here" / "f.mr")):
            parallel_fixedram.plan(guest, target)
            saving.save(guest, target, overwrite=True)
    assert {os.path.realpath(folder) for folder, _, _ in costs.asked} == {str(tmp_path / "here")}
    assert (tmp_path / "there" / "old.mr").read_bytes() == b"old"


def test_gaps_and_shards_are_what_was_asked_for(tmp_path):
    heard = saving.Heard()
    options = {"gap_pages": 7, "shard_pages": 300, "observer": heard}
    with parallel_fixedram.open_guest("random,size=16MiB,fraction=0.5") as guest:
        report = saving.save(guest, str(tmp_path / "f.mr"), **options)
        none = saving.save(guest, str(tmp_path / "g.mr"), gap_pages=0)
    assert (report.choice.gap_pages, report.choice.shard_pages) == (7, 300)
    assert report.rounds[0].gap_pages > 0 == none.rounds[0].gap_pages
    assert len(heard.shards) >= report.rounds[0].written_pages // 364
    assert parallel_fixedram.diff(str(tmp_path / "f.mr"), str(tmp_path / "g.mr")).equal


def test_a_trace_has_every_page_with_data_once_a_round_within_the_time_of_the_save(tmp_path):
    observer = saving.Heard()
    with parallel_fixedram.open_guest("dense,size=8MiB") as guest:
        report = saving.save(guest, str(tmp_path / "f.mr"), channels=2, experimental_multifd=True, observer=observer)
    heard = observer.shards
    pages = [page for shard in heard for page in range(shard.first_page, shard.first_page + shard.pages)]
    assert sorted(pages) == list(range(2048))
    assert sum(shard.bytes for shard in heard) == report.bytes.written
    assert all(0 < shard.started <= shard.ended <= report.seconds.total for shard in heard)
    assert {shard.worker for shard in heard} <= {0, 1}


@pytest.mark.parametrize("direct_io", ["on", "off"])
def test_a_file_is_kept_in_the_page_cache_or_dropped_from_it(tmp_path, direct_io):
    left = {}
    with parallel_fixedram.open_guest("dense,size=4MiB") as guest:
        for cache in ("keep", "drop"):
            path = str(tmp_path / cache)
            report = saving.save(guest, path, direct_io=direct_io, cache=cache)
            if report.bytes.cached is None:
                pytest.skip("the kernel does not tell what is cached")
            with open(path, "rb") as file:
                if linux.is_tmpfs(file.fileno()):
                    pytest.skip("the temporary folder is memory")
                left[cache] = (report.bytes.cached, linux.cachestat(file.fileno()))
    assert left["drop"] == (0, 0)
    assert left["keep"][0] >= ((4 << 20) if direct_io == "off" else 1)


def test_what_a_file_says_of_itself_goes_to_json_and_comes_back_equal(tmp_path):
    image = str(tmp_path / "f.mr")
    with parallel_fixedram.open_guest("dense,size=1MiB") as guest:
        parallel_fixedram.save(guest, image)
    report = parallel_fixedram.inspect(image)
    assert [(block.idstr, block.pages, block.data_pages) for block in report.blocks] == [("pc.ram", 256, 256)]
    told = json.loads(json.dumps(parallel_fixedram.to_json(report)))
    assert (told["schema"], told["verb"]) == ("parallel_fixedram.inspect", "inspect")
    assert parallel_fixedram.from_json(parallel_fixedram.InspectReport, told) == report


@pytest.mark.parametrize("channels", [0, -1, 256])
def test_no_channel_is_not_one_channel(channels):
    gate = parallel_fixedram.Gate(channels=channels)
    for refused in (
        lambda: parallel_fixedram.restore("f.mr", {"m": "ram"}, gate=gate),
        lambda: parallel_fixedram.restore_guest("f.mr", ["qemu"], gate=gate),
        lambda: restore_guest.plan_restore("f.mr", ["qemu"], gate=gate),
        lambda: parallel_fixedram.save(lambda: pytest.fail("the gate comes first"), "f.mr", gate=gate),
    ):
        with pytest.raises(parallel_fixedram.RequestError, match="between 1 and 255"):
            refused()


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
