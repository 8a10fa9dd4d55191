"""Scenarios: what a TOML file stands for, and what is said about one that is wrong."""

import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

import parallel_fixedram
from parallel_fixedram.core.errors import RequestError
from parallel_fixedram.experiments import parameters
from parallel_fixedram.experiments.boot_sector import fill_image
from parallel_fixedram.experiments.cases import WAYS
from parallel_fixedram.experiments.parameters import QemuSpec
from parallel_fixedram.experiments.scenario import find_scenario, load_scenario, parse_scenario, shipped
from parallel_fixedram.experiments.ways.table import TABLE

SHIPPED = sorted(Path(path) for path in shipped().values())
HEAD = 'name = "s"\nquestion = "Why?"\n'


def parse(*tables: str, head: str = HEAD):
    return parse_scenario(head + "".join(f"[[case]]\n{table}\n" for table in tables), "s.toml")


def cases(*tables: str):
    return list(parse(*tables).cases)


def test_a_guest_boots_from_what_its_specification_says():
    """Wherever it runs: QEMU alone and libvirt take it from here."""
    spec = QemuSpec(size=64 << 20, data=0.25, dirty_rate=1 << 20, hot=4 << 20, at_random=True)
    options = {"size": 64 << 20, "share": 0.25, "dirty_rate": 1 << 20, "seed": 3}
    assert spec.boot_image(3) == fill_image(**options, hot=4 << 20, at_random=True)
    assert replace(spec, at_random=False).boot_image(3) == fill_image(**options, hot=4 << 20)
    assert replace(spec, hot=0, at_random=False).boot_image(3) == fill_image(**options)
    assert spec.boot_image(3) != replace(spec, at_random=False).boot_image(3)


def test_a_table_is_every_combination_of_its_lists():
    found = cases('way = "ours"\nguest = "dense,size=1GiB"\nchannels = [1, 2, 4]\ndirect_io = ["on", "off"]')
    assert [(case.channels, case.direct_io) for case in found] == [
        (1, "on"), (1, "off"), (2, "on"), (2, "off"), (4, "on"), (4, "off"),
    ]  # fmt: skip
    assert found[2].id == "ours guest=dense,size=1GiB channels=2 direct_io=on"


def test_what_is_not_said_has_a_default_that_is_among_the_parameters_but_not_in_the_name():
    (case,) = cases('way = "ours"\nguest = "zero,size=4MiB"')
    assert case.id == "ours guest=zero,size=4MiB channels=1"
    assert case.parameters() == {
        "way": "ours",
        "guest": "zero,size=4MiB",
        "channels": 1,
        "direct_io": "auto",
        "gap_pages": "auto",
        "shard_pages": "auto",
        "queue_depth": "auto",
        "file_system": "folder",
        "calibrate": False,
        "capture": "auto",
        "durability": "full",
        "cache": "keep",
    }


def test_a_way_has_no_value_for_what_it_does_not_know():
    (case,) = cases('way = "scan"\nguest = "zero,size=4MiB"')
    assert case.parameters() == {"way": "scan", "guest": "zero,size=4MiB"}


def test_values_of_a_qemu_guest_may_be_lists_too():
    found = cases('way = "ours"\nqemu = {size = "128MiB", data = [0.1, 0.5], ram = ["memfd", "private"]}')
    assert len({case.id for case in found}) == 4
    assert found[1].parameters()["qemu"] == {
        "size": 128 << 20,
        "data": 0.1,
        "ram": "private",
        "dirty_rate": 0,
        "hot": 0,
        "at_random": False,
        "fresh": False,
        "watched": False,
        "domain": False,
    }


def test_a_guest_may_be_as_large_as_a_share_of_this_hosts_memory(monkeypatch):
    table = 'way = "pause-floor"\nqemu = {size = "1/8 of memory"}'
    told = [None]
    monkeypatch.setattr(parameters, "memory_bytes", lambda _: told[0])
    for total, size in ((24 << 30, 3 << 30), (25_276_063_744, 2816 << 20), (128 << 30, 3 << 30), (1 << 30, 256 << 20)):
        told[0] = total
        assert cases(table)[0].qemu.size == size
    for wrong in ("1/0 of memory", "2/8 of memory", "1/8 of memories"):
        with pytest.raises(RequestError, match="size"):
            cases(table.replace("1/8 of memory", wrong))
    told[0] = None
    with pytest.raises(RequestError, match="does not tell how much memory"):
        cases(table)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ('way = "virsh-save"\nqemu = {size = "64MiB"}', "is about a domain of libvirt: domain = true"),
        ('way = "clone"\nqemu = {size = "64MiB", domain = true}', "'clone' is not for a domain, ours, pause-floor"),
        ('way = "ours"\nqemu = {size = "64MiB", domain = true, fresh = true}', "neither fresh nor watched"),
        ('way = "virsh-save"\nqemu = {size = "64MiB", domain = true}\nimage_format = "ours"', "does not write"),
        (
            'way = "virsh-save"\nqemu = {size = "64MiB", domain = true}\nimage_format = "raw"\nchannels = 2',
            "several only for image_format = 'sparse'",
        ),
        (
            'way = "qemu-file"\nqemu = {size = "64MiB", dirty_rate = "1MiB"}\nlive = true\nrounds = 3',
            "live: not together with rounds",
        ),
        ('way = "clone"\nqemu = {size = "64MiB", dirty_rate = "1MiB"}', "of a guest that sleeps, or is watched"),
        (
            'way = "clone"\nqemu = {size = "64MiB", dirty_rate = "1MiB", watched = true}\ncount = 4',
            "is that of one guest",
        ),
    ],
)
def test_what_does_not_go_with_a_domain_or_a_live_migration_is_refused(table, message):
    with pytest.raises(RequestError, match=message):
        cases(table)


def test_a_case_that_two_tables_name_is_there_once():
    table = 'way = "scan"\nguest = "zero,size=4MiB"'
    assert len(cases(table, table)) == 1


def test_names_of_cases_are_unlike_each_other():
    for path in SHIPPED:
        ids = [case.id for case in load_scenario(str(path)).cases]
        assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_scenarios_are_named_like_their_files_and_ask_something(path):
    scenario = load_scenario(str(path))
    assert scenario.name == path.stem
    assert scenario.question.endswith("?")
    assert scenario.text == path.read_text()


def test_the_scenario_for_trying_uses_every_way():
    assert {case.way for case in load_scenario(str(SHIPPED[0].with_name("smoke.toml"))).cases} == set(WAYS)


def test_every_way_that_a_scenario_can_name_can_be_run():
    assert set(TABLE) == set(WAYS)


def test_the_package_brings_its_scenarios_along_when_it_is_installed():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    package = Path(parallel_fixedram.__file__).parent
    patterns = project["tool"]["setuptools"]["package-data"]["parallel_fixedram"]
    assert {path for pattern in patterns for path in package.glob(pattern)} >= set(SHIPPED)
    assert "smoke" in shipped()


def test_a_name_is_a_shipped_scenario_wherever_one_is_and_a_path_is_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mine = HEAD + '[[case]]\nway = "scan"\nguest = "zero"\n'
    for name in ("smoke", "smoke.toml", "s.toml"):
        (tmp_path / name).write_text(mine)
    assert find_scenario("smoke").path == shipped()["smoke"]
    assert find_scenario("smoke.toml").name == find_scenario("./smoke").name == "s"
    with pytest.raises(RequestError, match=r"^no scenario 's': there are .*\bcache, .*smoke") as caught:
        find_scenario("s")
    assert ".toml" in caught.value.hint
    with pytest.raises(RequestError, match=r"^scenario 'other.toml' does not exist"):
        find_scenario("other.toml")


WRONG = {
    "way = 'ours'": "case 1, way: 'ours' needs one source, guest or qemu; found none",
    "guest = 'dense'": "case 1, way: missing, expected one of ours, ",
    "way = 'thiers'\nguest = 'dense'": "case 1, way: 'thiers': expected one of ours, ",
    "way = 'ours'\nguest = 'dense'\nchanels = 2": "case 1, chanels: unknown, expected one of way, guest, ",
    "way = 'ours'\nguest = 'dense'\nchannels = 0": "case 1, channels: 0: expected a whole number from 1 to 256",
    "way = 'ours'\nguest = 'dense'\nchannels = [1, true]": "case 1, channels: True: expected a whole number",
    "way = 'ours'\nguest = 'dense'\nchannels = []": "case 1, channels: an empty list",
    "way = 'ours'\nguest = 'dense'\ngap_pages = 'some'": "expected a whole number from 0 to 1048576, or 'auto'",
    "way = 'ours'\nguest = 'dense,siez=1'": "case 1, guest: 'dense,siez=1': unknown guest key 'siez'",
    "way = 'ours'\nguest = 7": "case 1, guest: 7: expected a text",
    "way = 'ours'\nguest = 'dense'\ndirty = 1.5": "case 1, dirty: 1.5: expected a number above 0 and up to 1",
    "way = 'ours'\nguest = 'dense,size=8MiB'\ndirty = 0.1": "dirty: needs guest = 'dense,...' of 16 MiB or more",
    "way = 'ours'\nguest = 'hot'\ndirty = 0.1": "dirty: needs guest = 'dense,...' of 16 MiB or more",
    "way = 'ours'\nguest = 'dense'\ndirty = 0.1\nrounds = 2": "case 1, dirty: not together with rounds",
    "way = 'ours'\nguest = 'dense'\nqemu = {size = '1GiB'}": "found guest and qemu",
    "way = 'scan'\nguest = 'dense'\nchannels = 2": "case 1, channels: not a parameter of 'scan', which knows none but",
    "way = 'sequential'\nguest = 'dense'\ndirect_io = 'on'": "case 1, direct_io: not a parameter of 'sequential'",
    "way = 'fio'\nguest = 'dense'\ndirect_io = 'auto'": "case 1, direct_io: 'auto' with 'fio', expected on or off",
    "way = 'ours'\nguest = 'dense'\ncalibrate = 1": "case 1, calibrate: 1: expected true or false",
    "way = 'fio-pages'\nguest = 'dense'\nchannels = 2": "case 1, channels: not a parameter of 'fio-pages', which knows",
    "way = 'fio'\nguest = 'dense'\nblock_size = '5000'": "block_size: '5000': expected a multiple of 4096 bytes",
    "way = 'fio'\nguest = 'dense'\nblock_size = 'big'": "case 1, block_size: 'big': not a size",
    "way = 'qemu-file'\nguest = 'dense'": "case 1, way: 'qemu-file' needs one source, qemu; found guest",
    "way = 'page-by-page'\nqemu = {size = '1GiB'}": "case 1, way: 'page-by-page' needs one source, guest; found qemu",
    "way = 'ours'\nqemu = '1GiB'": "case 1, qemu: '1GiB': expected a table",
    "way = 'ours'\nqemu = {data = 0.5}": "case 1, qemu, size: missing",
    "way = 'ours'\nqemu = {size = '80GiB'}": "qemu, size: 85899345920 bytes, expected whole MiB from 64 to 65536",
    "way = 'ours'\nqemu = {size = '8GiB'}": "qemu, data: 0.5, expected at most 0.373 of 8192 MiB",
    "way = 'ours'\nqemu = {size = '64MiB', data = 0.9}": "qemu, data: 0.9, expected at most 0.734 of 64 MiB",
    "way = 'ours'\nqemu = {size = '1GiB', rma = 'memfd'}": "case 1, qemu, rma: unknown, expected one of size, data,",
    "way = 'ours'\nqemu = {size = '1GiB', dirty_rate = '1MiB'}\nrounds = 3": "case 1, rounds: 'ours' saves",
    "way = 'clone'\nqemu = {size = '1GiB', fresh = true}": "case 1, qemu: 'clone' is about the RAM of",
    "way = 'restore'\nqemu = {size = '1GiB', dirty_rate = '1MiB'}": "case 1, qemu: 'restore' is about the RAM of",
    "way = 'qemu-load'\nqemu = {size = '1GiB'}\ndirect_io = 'on'": "case 1, direct_io: QEMU bypasses the page cache",
    "way = 'clone'\nqemu = {size = '1GiB'}\ncount = 0": "case 1, count: 0: expected a whole number from 1 to 64",
    "way = 'restore'\nguest = 'dense'": "case 1, way: 'restore' needs one source, qemu; found guest",
    "way = 'clone'\nqemu = {size = '1GiB'}\ncount = 2\ntouch = true": "case 1, touch: the RAM of one guest is read",
    "way = 'ours'\nqemu = {size = '1GiB', at_random = true}": "case 1, qemu: hot and at_random need a dirty_rate",
    "way = 'ours'\nqemu = {size = '1GiB', dirty_rate = 1, hot = '600MiB'}": "case 1, qemu: hot and at_random need",
    "way = 'ours'\nqemu = {size = '1GiB', watched = true}": "case 1, qemu, watched: only with a dirty_rate",
    "way = 'ours'\nqemu = {size = '1GiB', fresh = 1}": "case 1, qemu, fresh: 1: expected true or false",
    "way = 'qemu-file'\nqemu = {size = '1GiB'}\nrounds = 3": "case 1, rounds: needs qemu with a dirty_rate",
}


@pytest.mark.parametrize("table", WRONG)
def test_a_wrong_table_is_one_line_that_says_where(table):
    with pytest.raises(RequestError) as caught:
        parse(table)
    assert caught.value.message.startswith("scenario 's.toml', case 1, ")
    assert WRONG[table] in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("head", "said"),
    [
        ('name = "s"\n', "question: missing"),
        ('question = "?"\n', "name: missing"),
        ('name = "a/b"\nquestion = "?"\n', "name: 'a/b': expected letters, digits, - and _"),
        (HEAD + "repeats = 0\n", "repeats: 0: expected a whole number from 1 to 10000"),
        (
            HEAD + "sed = 1\n",
            "sed: unknown, expected one of name, question, repeats, warm_up, seed, until, budget, published, case",
        ),
        (HEAD + "name = 1\n", "not TOML"),
    ],
)
def test_a_wrong_head_is_one_line_that_says_where(head, said):
    with pytest.raises(RequestError) as caught:
        parse('way = "scan"\nguest = "zero"', head=head)
    assert caught.value.message.startswith("scenario 's.toml'")
    assert said in caught.value.message


def test_the_number_of_the_table_is_named():
    with pytest.raises(RequestError, match=r"^scenario 's.toml', case 2, channels: "):
        parse('way = "scan"\nguest = "zero"', 'way = "fio"\nguest = "zero"\nchannels = -1')


def test_a_scenario_without_cases_or_with_far_too_many_is_refused():
    with pytest.raises(RequestError, match="case: expected at least one table"):
        parse()
    many = ", ".join(map(str, range(1, 200)))
    with pytest.raises(RequestError, match="case 1: more than 10000 cases"):
        parse(f'way = "ours"\nguest = "zero"\nchannels = [{many}]\ngap_pages = [{many}]')


@pytest.mark.parametrize("text", ["a = " + "[" * 100_000, "a = " + "9" * 5000, "a = \0", "[[case]", "a = 1\na = 2"])
def test_what_is_no_toml_is_one_line(text):
    with pytest.raises(RequestError, match=r"^scenario 's.toml' is (not TOML|no scenario): .*") as raised:
        parse_scenario(text, "s.toml")
    assert "\n" not in raised.value.message


def test_what_is_not_text_is_refused(tmp_path):
    (tmp_path / "s.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(RequestError, match="is not UTF-8"):
        load_scenario(str(tmp_path / "s.toml"))
    with pytest.raises(RequestError, match="does not exist or is no file"):
        load_scenario(str(tmp_path))
