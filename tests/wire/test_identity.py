"""Command lines of clones that are not twins: what is changed, and that nothing else is."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallel_fixedram.boot.clone_identity import ENTRY, Distinct, Parent, distinct, no_room_hint, twins
from parallel_fixedram.boot.command_line import CommandLine, join_properties, split_properties
from parallel_fixedram.boot.device_options import devices
from parallel_fixedram.core.errors import RequestError

GUID = "11111111-2222-3333-4444-555555555555"
PARENT = Parent(digest="0123456789abcdef", has_vmgenid=True, has_fw_cfg=True)
COUNT = 5
NAMES = st.from_regex(r"x-[a-z0-9.-]*", fullmatch=True)
TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])) | st.text(",=ab")


def clones(*arguments: str, parent: Parent = PARENT, count: int = COUNT) -> Distinct:
    lines = [CommandLine.parse(["qemu", *arguments]).with_number(number) for number in range(count)]
    return distinct(lines, parent, "whatever that means")


def guids(made: Distinct) -> list[str]:
    """The GUID that QEMU would give to the vmgenid device of each clone."""
    found = []
    for line in made.lines:
        (device,) = [each for each in devices(line) if each.driver == "vmgenid"]
        guid = str(device.properties["guid"])
        for option in line.options:
            if option.name == "set" and not device.is_json:
                what, _, value = str(option.value).partition("=")
                guid = value if what == f"device.{device.properties.get('id')}.guid" else guid
        found.append(guid)
    return found


def entries(line: CommandLine) -> list[dict[str, str]]:
    """The entries in fw_cfg, as QEMU reads the command line."""
    return [dict(split_properties(each.value or "", "name")) for each in line.options if each.name == "fw_cfg"]


WAYS: Sequence[tuple[str, ...]] = (
    ("-device", "vmgenid"),
    ("-device", "vmgenid,guid=auto"),
    ("-device", f"vmgenid,guid={GUID},id=vm"),
    ("-device", f"guid={GUID},driver=vmgenid"),
    ("--device", f"vmgenid,guid={GUID},guid=auto"),
    ("-device", f'{{"driver": "vmgenid", "guid": "{GUID}"}}'),
    ("-device", '{"id": "vm", "driver": "vmgenid"}'),
    ("-device", "vmgenid,id=vm", "-set", f"device.vm.guid={GUID}"),
    ("-set", f"device.vm.guid={GUID}", "-device", "vmgenid,id=vm"),
)


@pytest.mark.parametrize("way", WAYS)
def test_however_a_vmgenid_is_given_each_clone_has_a_guid_of_its_own(way: tuple[str, ...]) -> None:
    made = clones(*way)
    assert guids(made) == list(made.ids)
    assert len({str(uuid.UUID(each)) for each in made.ids}) == COUNT
    assert GUID not in str([line.arguments for line in made.lines])
    assert made.changes == ["each clone's vmgenid has a GUID of its own"]
    assert made.notes == [
        "clones have random numbers of their own (vmgenid), and share MAC addresses, machine ids and keys, "
        "whatever that means"
    ]


@given(st.dictionaries(NAMES, TEXTS, max_size=3), st.booleans())
def test_whatever_else_a_device_has_it_keeps(properties: dict[str, str], as_json: bool) -> None:
    given_ = join_properties(list(properties.items()), "vmgenid")
    made = clones("-device", json.dumps({"driver": "vmgenid", **properties}) if as_json else given_, count=1)
    (device,) = devices(made.lines[0])
    assert (device.is_json, device.properties) == (as_json, {**properties, "guid": made.ids[0]})


OTHERS = (
    ("-device", "virtio-net-pci,mac=52:54:00:00:00:0{n}"),
    ("-device", '{"driver": "virtio-rng-pci"}'),
    ("-set", "device.vm.guid2=1"),
    ("-fw_cfg", "name=opt/a,string=b"),
    ("-fw_cfg", "opt/parallel_fixedram/a,file=/x,,y"),
    ("-append", "-device vmgenid,guid=auto"),
    ("-uuid", GUID),
    ("-m", "1G"),
    ("-S",),
    ("disk.img",),
)


@given(st.lists(st.sampled_from(OTHERS), max_size=4), st.lists(st.sampled_from(OTHERS), max_size=4))
def test_everything_else_stays_to_the_letter_and_in_its_place(
    before: list[tuple[str, ...]], after: list[tuple[str, ...]]
) -> None:
    first, last = (sum(each, ()) for each in (before, after))
    for number, line in enumerate(clones(*first, "-device", "vmgenid", *last, count=2).lines):
        expected = [
            each.replace("{n}", str(number)) for each in ("qemu", *first, "-device", "*", *last, "-fw_cfg", "*")
        ]
        assert len(line.arguments) == len(expected)
        assert all(there in (each, "*") for each, there in zip(line.arguments, expected, strict=True))


def test_each_clone_reads_in_fw_cfg_which_one_it_is() -> None:
    made = clones("-device", "vmgenid")
    for number, (line, id_) in enumerate(zip(made.lines, made.ids, strict=True)):
        (entry,) = entries(line)
        assert entry["name"] == ENTRY
        assert json.loads(entry["string"]) == {"n": number, "id": id_, "parent": "0123456789abcdef"}
    (entry,) = entries(clones(parent=Parent(digest=None, has_vmgenid=False, has_fw_cfg=True), count=1).lines[0])
    assert json.loads(entry["string"])["parent"] is None


@pytest.mark.parametrize("text", [f"name={ENTRY},string=x", f"{ENTRY},file=/x", f"string=,name={ENTRY}"])
def test_an_entry_of_that_name_is_replaced_whatever_comes_behind_it(text: str) -> None:
    made = clones("-fw_cfg", text, "-fw_cfg", "name=opt/zzz,string=z", count=2)
    for number, line in enumerate(made.lines):
        ours, other = entries(line)
        assert json.loads(ours["string"])["n"] == number
        assert other == {"name": "opt/zzz", "string": "z"}
    assert made.changes == [f"-fw_cfg {ENTRY} says which clone it is"]


@pytest.mark.parametrize(
    ("arguments", "parent", "note"),
    [
        (
            ("-fw_cfg", "opt/zzz,string=z", "-fw_cfg", "name=opt/q,file=/x"),
            PARENT,
            f"fw_cfg cannot tell clones which one they are: {ENTRY} would give 'opt/q' another number",
        ),
        (
            (),
            Parent(digest="0", has_vmgenid=True, has_fw_cfg=False),
            "the machine has no fw_cfg, which would tell clones which one they are",
        ),
    ],
)
def test_where_an_entry_would_do_harm_or_has_no_place_there_is_none_and_a_note(
    arguments: tuple[str, ...], parent: Parent, note: str
) -> None:
    made = clones("-device", "vmgenid", *arguments, parent=parent)
    assert guids(made) == list(made.ids)
    assert all(line.arguments[3:] == arguments for line in made.lines)
    assert made.notes[1:] == [note]


def test_a_vmgenid_that_the_saved_machine_lacks_is_not_added_and_that_is_said() -> None:
    made = clones("-m", "1G", parent=Parent(digest="0", has_vmgenid=False, has_fw_cfg=True))
    assert not [device for line in made.lines for device in devices(line)]
    assert made.changes == []
    (note,) = made.notes
    assert note.startswith(
        "the saved machine has no vmgenid device: clones share random numbers to come, MAC addresses"
    )


def test_one_that_cannot_be_seen_is_said_to_keep_its_guid() -> None:
    (note,) = clones("-readconfig", "vm.cfg").notes
    assert note.startswith("the GUID of a vmgenid in a -readconfig file cannot be changed: clones share random numbers")


def test_a_full_fw_cfg_gets_a_hint() -> None:
    """In QEMU 10.0's words."""
    words = "hw/nvram/fw_cfg.c:1021: fw_cfg_modify_file: Assertion `index < fw_cfg_file_slots(s)' failed."
    assert no_room_hint(f"'qemu' was ended by SIGABRT; QEMU: qemu: {words}").endswith("--identity same leaves it out")
    assert no_room_hint("QEMU: fw_cfg device not available") == ""


def test_twins_are_what_the_user_gave() -> None:
    lines = [CommandLine.parse(["qemu", "-device", "vmgenid,guid=auto"])] * 2
    made = twins(lines)
    assert made.lines == lines
    assert (list(made.ids), list(made.changes)) == ([], [])


@pytest.mark.parametrize("text", ['{"driver": ', "{" * 100_000, '{"driver": "vmgenid"} x'])
def test_a_device_that_is_not_json_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(RequestError, match="a QEMU -device is not JSON: ") as caught:
        clones("-device", text)
    assert "\n" not in caught.value.message
