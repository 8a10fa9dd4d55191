from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallel_fixedram.boot.command_line import CommandLine, MemoryFile, join_properties, split_properties
from parallel_fixedram.core.errors import RequestError

MIB = 1 << 20
GIB = 1 << 30
CLONE = MemoryFile(path="/vm/a,b c", offset=4096, size=GIB, shared=False)
SHARED = MemoryFile(path="/dev/shm/r", offset=0, size=GIB, shared=True)
SMALL = [("0000:00:02.0/vga.vram", 16 * MIB), ("/rom@etc/acpi/tables", 2 * MIB), ("pc.bios", 256 << 10)]


def parse(*arguments: str) -> CommandLine:
    return CommandLine.parse(["qemu-system-x86_64", *arguments])


def rewritten(*arguments: str, **files: MemoryFile) -> list[str]:
    return parse(*arguments).with_memory(files).arguments[1:]


def of_file(id_: str, rest: str = "", name: str = "off") -> str:
    """What ``CLONE`` looks like as a backend."""
    place = "size=1073741824,mem-path=/vm/a,,b c,offset=4096,share=off,readonly=on,rom=off"
    return f"memory-backend-file,id={id_},{place},x-use-canonical-path-for-ramblock-id={name}{rest}"


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        ("", [("type", "")]),
        ("q35", [("type", "q35")]),
        ("type=q35", [("type", "q35")]),
        ("a,,b", [("type", "a,b")]),
        ("q35,x=a,,b,y=1", [("type", "q35"), ("x", "a,b"), ("y", "1")]),
        ("q35,x=a,,,y=1", [("type", "q35"), ("x", "a,"), ("y", "1")]),
        ("x=,,a", [("x", ",a")]),
        ("x=,y=1", [("x", ""), ("y", "1")]),
        ("x=a=b", [("x", "a=b")]),
        ("q35,share,nomerge", [("type", "q35"), ("share", "on"), ("merge", "off")]),
        ("x=1,", [("x", "1")]),
        ("x=a b\n", [("x", "a b\n")]),
    ],
)
def test_properties_are_split_as_qemu_splits_them(text: str, pairs: list[tuple[str, str]]) -> None:
    assert split_properties(text, "type") == pairs


NAMES = st.from_regex(r"[a-z][a-z0-9.-]*", fullmatch=True)


@given(st.lists(st.tuples(NAMES, st.text() | st.text(",=ab")), min_size=1))
def test_any_values_survive_joining_and_splitting(pairs: list[tuple[str, str]]) -> None:
    assert split_properties(join_properties(pairs)) == pairs
    assert split_properties(join_properties(pairs, "first"), "type") == [("type", "first"), *pairs]


@given(st.text())
def test_any_text_can_be_split(text: str) -> None:
    split_properties(text, "type")


def test_backends_are_found_in_both_forms_and_behind_one_or_two_dashes() -> None:
    found = parse(
        *("-object", "memory-backend-ram,id=a,size=1G,share"),
        *("--object", "id=b,qom-type=memory-backend-file,mem-path=/x,,y,id=no"),
        *("-object", '{"qom-type":"memory-backend-shm","id":"c","size":4096,"merge":false,"host-nodes":[0,2]}'),
        *("-object", "rng-random,id=r", "-object", "memory-backend-epc,id=e,size=1M", "-object", "{}"),
    ).backends
    assert {each.id: (each.kind, each.properties) for each in found.values()} == {
        "a": ("memory-backend-ram", (("size", "1G"), ("share", "on"))),
        "b": ("memory-backend-file", (("mem-path", "/x,y"),)),
        "c": ("memory-backend-shm", (("size", "4096"), ("merge", "off"), ("host-nodes", "0"), ("host-nodes", "2"))),
    }
    assert list(found) == ["a", "b", "c"]


@pytest.mark.parametrize("before", [["-append", "-S"], ["-nographic"], ["disk.img"], ["-name", "-object"], ["--usb"]])
def test_a_value_may_look_like_an_option(before: list[str]) -> None:
    found = parse(*before, "-object", "memory-backend-ram,id=m,size=1G")
    assert list(found.backends) == ["m"]
    assert not found.paused


@pytest.mark.parametrize("option", ["-S", "--S"])
def test_a_guest_that_shall_not_run_is_noticed(option: str) -> None:
    assert parse("-m", "1G", option).paused
    assert rewritten("-m", "1G", option, **{"pc.ram": SHARED})[:3] == ["-m", "1G", option]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-incoming", "defer"], "option -incoming is not allowed here"),
        (["--incoming", "defer"], "option -incoming is not allowed here"),
        (["-daemonize"], "option -daemonize is not allowed here"),
        (["-loadvm", "x"], "option -loadvm is not allowed here"),
        (["--preconfig"], "option -preconfig is not allowed here"),
        (["-m", "1G", "-object"], "option '-object' has no value"),
        (["-object", "{"], "-object is not JSON: "),
        (["-object", "{" * 100_000], "-object is not JSON: "),
        (["-object", "{'qom-type':'memory-backend-ram'}"], "-object is not JSON: "),
        (["-object", "memory-backend-ram,size=1G"], "a memory-backend-ram of the QEMU command line has no id"),
        (["-append", "a\0b"], "contains a NUL character"),
        (
            ["-object", "memory-backend-ram,id=m,size=1", "-object", '{"qom-type":"memory-backend-memfd","id":"m"}'],
            "two memory backends have the id 'm'",
        ),
    ],
)
def test_what_cannot_be_worked_with_is_refused_in_one_line(arguments: list[str], message: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse(*arguments)
    assert message in caught.value.message
    assert "\n" not in caught.value.message


def test_an_empty_command_line_is_refused() -> None:
    with pytest.raises(RequestError, match="command line is empty"):
        CommandLine.parse([])


@pytest.mark.parametrize(
    ("arguments", "blocks", "main"),
    [
        (["-m", "1G"], [("pc.ram", GIB)], ["pc.ram"]),
        (["-M", "virt"], [("mach-virt.ram", GIB), ("x.ram", MIB)], ["mach-virt.ram"]),
        (
            ["-M", "q35,memory-backend=m", "-object", "memory-backend-ram,id=m,size=1G"],
            [("m", GIB)],
            ["m"],
        ),
        (
            ["-M", "q35,memory-backend=m", "-object", "memory-backend-file,id=m,size=1G"],
            [("/objects/m", GIB)],
            ["/objects/m"],
        ),
        (
            ["-m", "1G,slots=2", "-object", "memory-backend-ram,id=d0,size=1G", "-device", "pc-dimm,memdev=d0"],
            [("d0", 2 * GIB), ("pc.ram", GIB)],
            ["d0", "pc.ram"],
        ),
        (
            [
                *("-object", "memory-backend-ram,id=n0,size=1G", "-object", "memory-backend-ram,id=n1,size=1G"),
                *("-numa", "node,memdev=n0", "-numa", "node,memdev=n1"),
            ],
            [("n1", GIB), ("x.ram", GIB), ("n0", GIB)],
            ["n1", "n0"],
        ),
    ],
)
def test_main_blocks_are_backends_and_the_default_ram(
    arguments: list[str], blocks: list[tuple[str, int]], main: list[str]
) -> None:
    assert parse(*arguments).main_blocks([*SMALL, *blocks]) == main


M = ("-M", "q35,memory-backend=m", "-object", "memory-backend-ram,id=m,size=1G")


@pytest.mark.parametrize(
    ("arguments", "blocks", "message"),
    [
        (["-m", "1G"], [("m", GIB)], "block 'm' of the file .*, which has QEMU's default RAM"),
        (M, [("pc.ram", GIB)], "block 'pc.ram' of the file .*, which has 'm'"),
        (["-M", "memory-backend=k"], [("k", GIB)], "block 'k' of the file .*, which has none"),
        ([*M, "-machine", "memory-backend=k"], [("m", GIB), ("k", GIB)], "block 'k' .*, which has 'm'"),
        (
            ["-m", "1G", "-object", "memory-backend-ram,id=d0,size=1G"],
            [("d0", GIB), ("m", GIB)],
            "block 'm' .*, which has 'd0', QEMU's default RAM",
        ),
    ],
)
def test_a_file_of_another_command_line_is_refused_by_the_name_of_its_block(
    arguments: list[str], blocks: list[tuple[str, int]], message: str
) -> None:
    with pytest.raises(RequestError, match=f"^{message}$"):
        parse(*arguments).main_blocks([*SMALL, *blocks])


@pytest.mark.parametrize("blocks", [[], [("m", GIB)]])
def test_a_file_without_the_main_ram_is_refused(blocks: list[tuple[str, int]]) -> None:
    command = parse(*M, "-M", "memory-backend=k")
    with pytest.raises(RequestError, match="the file has no block for 'k' of this QEMU command line"):
        command.main_blocks(blocks)
    with pytest.raises(RequestError, match="no block for QEMU's default RAM"):
        parse("-object", "memory-backend-ram,id=m").main_blocks(blocks)


def test_default_ram_gets_a_backend_of_its_name() -> None:
    command = parse("-M", "pc", "-m", "1G", "-mem-path", "/huge", "-mem-prealloc", "-append", "-v")
    arguments, changes = command.with_memory({"pc.ram": CLONE})
    assert arguments == [
        *("qemu-system-x86_64", "-M", "pc", "-m", "1G", "-append", "-v"),
        *("-object", of_file("pc.ram"), "-machine", "memory-backend=pc.ram"),
    ]
    assert changes == [
        "default RAM 'pc.ram' is now the file '/vm/a,b c' at 0x1000, copy-on-write",
        "-mem-path '/huge' is left out",
        "-mem-prealloc is left out",
    ]


def test_a_backend_is_replaced_in_its_place_and_keeps_what_is_not_about_its_bytes() -> None:
    old = (
        "memory-backend-memfd,id=m,hugetlb=on,merge=off,size=1G,share=on,host-nodes=0,host-nodes=1,policy=bind,dump=on"
    )
    arguments, changes = parse("-object", old, "-M", "q35,memory-backend=m").with_memory({"m": CLONE})
    kept = ",merge=off,host-nodes=0,host-nodes=1,policy=bind,dump=on"
    assert arguments[1:] == ["-object", of_file("m", kept), "-M", "q35,memory-backend=m"]
    assert changes == [
        "memory-backend-memfd 'm' is now the file '/vm/a,b c' at 0x1000, copy-on-write, without 'hugetlb=on,share=on'"
    ]


def test_a_backend_in_json_is_replaced_too() -> None:
    old = '{"qom-type":"memory-backend-ram","id":"m","size":1073741824,"merge":false,"host-nodes":[0,1]}'
    assert rewritten("-object", old, m=CLONE) == [
        "-object",
        of_file("m", ",merge=off,host-nodes=0,host-nodes=1"),
    ]


@pytest.mark.parametrize(("idstr", "name"), [("m", "off"), ("/objects/m", "on")])
def test_a_block_keeps_its_name_whatever_the_age_of_the_machine(idstr: str, name: str) -> None:
    old = "memory-backend-ram,id=m,size=1G,x-use-canonical-path-for-ramblock-id=on"
    assert rewritten("-object", old, **{idstr: CLONE}) == ["-object", of_file("m", name=name)]


def test_shared_ram_is_written_through() -> None:
    assert rewritten("-object", "memory-backend-ram,id=m,size=1G", m=SHARED)[1] == (
        "memory-backend-file,id=m,size=1073741824,mem-path=/dev/shm/r,offset=0,share=on,"
        "x-use-canonical-path-for-ramblock-id=off"
    )


def test_options_about_default_ram_stay_where_it_stays() -> None:
    arguments = ["-mem-path", "/huge", "-mem-prealloc", "-object", "memory-backend-ram,id=d0,size=1G"]
    assert rewritten(*arguments) == arguments
    assert rewritten(*arguments, d0=CLONE) == ["-mem-path", "/huge", "-object", of_file("d0")]


@pytest.mark.parametrize("files", [{"k": CLONE}, {"pc.ram": CLONE, "other.ram": CLONE}, {"x/vga.ram": CLONE}])
def test_only_ram_of_the_command_line_is_replaced(files: dict[str, MemoryFile]) -> None:
    with pytest.raises(RequestError, match="of the file is not a memory backend of this QEMU command line"):
        parse("-m", "1G").with_memory(files)


def test_the_number_of_a_clone_goes_everywhere_but_not_into_the_file_of_its_ram() -> None:
    command = parse("-name", "c{n}-{n}", "-blockdev", '{"driver":"file","n":{}}', "-append", "{N} {n }", "-m", "1G")
    numbered = command.with_number(7)
    assert numbered.arguments[1:7] == ("-name", "c7-7", "-blockdev", '{"driver":"file","n":{}}', "-append", "{N} {n }")
    file = MemoryFile(path="/vm/{n}", offset=0, size=GIB, shared=False)
    assert "mem-path=/vm/{n}," in numbered.with_memory({"pc.ram": file}).arguments[-3]
