"""Drives of a command line: found as QEMU finds them, and put on an overlay with nothing else changed."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallel_fixedram.boot.command_line import join_properties, split_properties
from parallel_fixedram.boot.drive_options import drives_of
from parallel_fixedram.core.errors import RequestError

OVERLAY = "/run/a,b/0.qcow2"
DOUBLED = "/run/a,,b/0.qcow2"


def rewritten(*arguments: str) -> tuple[str, list[str]]:
    """The path of the only drive, and the arguments on an overlay."""
    line = ["qemu", *arguments]
    (drive,) = drives_of(line)
    assert drive.refusal == ""
    for position, text in drive.on(OVERLAY).items():
        line[position] = text
    return drive.path, line[1:]


@pytest.mark.parametrize(
    ("given", "then"),
    [
        ("file=d.img,format=raw,if=virtio", "file=O,format=qcow2,if=virtio"),
        ("if=none,id=d,file=d.img", "if=none,id=d,file=O,format=qcow2"),
        ("file=d.img,driver=raw,cache=none,aio=native", "file=O,cache=none,aio=native,format=qcow2"),
        ("file=file:d.img,discard=unmap", "file=O,discard=unmap,format=qcow2"),
        ("file=d.img,file.driver=file,file.locking=off", "file=O,file.locking=off,format=qcow2"),
        ("format=qcow2,file.filename=d.img", "format=qcow2,file.filename=O,file.driver=file"),
        (
            "driver=raw,file.driver=host_device,file.filename=d.img,if=pflash,unit=1",
            "file.driver=file,file.filename=O,if=pflash,unit=1,format=qcow2",
        ),
        (
            "driver=file,filename=d.img,locking=on,id=d",
            "id=d,format=qcow2,file.filename=O,file.locking=on,file.driver=file",
        ),
        ("file=d.img,format=qcow2,backing.driver=raw,backing.file.filename=b", "file=O,format=qcow2"),
        (
            "driver=throttle,throttle-group=g,file.driver=qcow2,file.file.filename=d.img",
            "driver=throttle,throttle-group=g,file.driver=qcow2,file.file.filename=O,file.file.driver=file",
        ),
        (
            "file=d.img,readonly=off,snapshot=on,copy-on-read=on",
            "file=O,readonly=off,snapshot=on,copy-on-read=on,format=qcow2",
        ),
        ("file=d.img,media=disk,nosnapshot", "file=O,media=disk,snapshot=off,format=qcow2"),
    ],
)
def test_a_drive_keeps_all_but_its_file_and_format(given: str, then: str) -> None:
    path, line = rewritten("-m", "1G", "-drive", given, "-S")
    assert path == "d.img"
    assert line == ["-m", "1G", "-drive", then.replace("O", DOUBLED), "-S"]


@pytest.mark.parametrize("dashes", ["-", "--"])
@pytest.mark.parametrize("name", ["hda", "hdb", "hdc", "hdd", "sd", "mtdblock", "pflash"])
def test_an_option_that_is_nothing_but_a_name_gets_another_name(dashes: str, name: str) -> None:
    assert rewritten(f"{dashes}{name}", "a,b=c.img") == ("a,b=c.img", [f"{dashes}{name}", OVERLAY])


def test_what_stands_alone_is_a_disk() -> None:
    assert rewritten("-m", "1G", "disk.img", "-S") == ("disk.img", ["-m", "1G", OVERLAY, "-S"])


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize(
    ("given", "then"),
    [
        (
            [{"driver": "qcow2", "node-name": "q", "file": {"driver": "file", "filename": "d.img", "aio": "native"}}],
            ["driver=qcow2,node-name=q,file.driver=file,file.filename=O,file.aio=native"],
        ),
        (
            [
                {"driver": "host_device", "node-name": "f", "filename": "d.img", "cache": {"direct": True}},
                {"driver": "raw", "node-name": "q", "file": "f", "discard": "unmap"},
            ],
            [
                "driver=file,node-name=f,filename=O,cache.direct=on",
                "driver=qcow2,node-name=q,file=f,discard=unmap",
            ],
        ),
        (
            [
                {"driver": "raw", "node-name": "q", "file": "f"},
                {"driver": "file", "node-name": "f", "filename": "d.img"},
            ],
            ["driver=qcow2,node-name=q,file=f", "driver=file,node-name=f,filename=O"],
        ),
        (
            [{"driver": "file", "node-name": "f", "filename": "d.img", "locking": "off", "discard": "unmap"}],
            ["driver=qcow2,node-name=f,discard=unmap,file.filename=O,file.locking=off,file.driver=file"],
        ),
        (
            [
                {"driver": "file", "node-name": "f", "filename": "d.img"},
                {"driver": "throttle", "node-name": "t", "throttle-group": "g", "file": "f"},
            ],
            ["driver=qcow2,node-name=f,file.filename=O,file.driver=file", "T"],
        ),
        (
            [
                {"driver": "raw", "node-name": "b", "file": {"driver": "file", "filename": "base"}},
                {"driver": "qcow2", "node-name": "q", "file": {"driver": "file", "filename": "d.img"}, "backing": "b"},
            ],
            ["T", "driver=qcow2,node-name=q,file.driver=file,file.filename=O"],
        ),
        (
            [
                {
                    "driver": "qcow2",
                    "node-name": "q",
                    "file": {"driver": "file", "filename": "d.img"},
                    "backing": {"driver": "raw", "file": {"driver": "file", "filename": "base"}},
                }
            ],
            ["driver=qcow2,node-name=q,file.driver=file,file.filename=O"],
        ),
    ],
)
def test_nodes_are_rewritten_where_they_are_in_either_form(given: list[dict], then: list[str], as_json: bool) -> None:
    texts = [json.dumps(node) if as_json else join_properties(flat(node)) for node in given]
    path, line = rewritten(*(each for text in texts for each in ("-blockdev", text)))
    assert path == "d.img"
    expected = [text if text != "T" else texts[number] for number, text in enumerate(then)]
    assert line[1::2] == [text.replace("O", DOUBLED) for text in expected]


def flat(node: dict, prefix: str = "") -> list[tuple[str, str]]:
    """A node's properties as QEMU's key=value form has them."""
    pairs = []
    for name, value in node.items():
        if isinstance(value, dict):
            pairs += flat(value, f"{prefix}{name}.")
        else:
            pairs.append((f"{prefix}{name}", "on" if value is True else str(value)))
    return pairs


def test_the_driver_may_stand_first_without_its_name() -> None:
    path, line = rewritten("-blockdev", "qcow2,node-name=q,file.driver=file,file.filename=d.img")
    assert (path, line[1]) == ("d.img", f"driver=qcow2,node-name=q,file.driver=file,file.filename={DOUBLED}")


@pytest.mark.parametrize(
    "arguments",
    [
        ("-cdrom", "a.iso"),
        ("-fda", "a.img"),
        ("-fdb", "a.img"),
        ("-drive", "file=a.iso,media=cdrom"),
        ("-drive", "file=a.img,if=floppy"),
        ("-drive", "file=CODE.fd,if=pflash,readonly=on"),
        ("-drive", "file=CODE.fd,if=pflash,readonly"),
        ("-drive", "file=CODE.fd,if=pflash,read-only=true"),
        ("-drive", "if=ide,media=cdrom"),
        ("-drive", "if=none,id=empty"),
        ("-drive", "file=,if=none,id=empty"),
        ("-blockdev", "driver=raw,node-name=r,read-only=on,file.driver=file,file.filename=a"),
        ("-blockdev", '{"driver":"raw","node-name":"r","read-only":true,"file":{"driver":"file","filename":"a"}}'),
        ("-kernel", "vmlinuz", "-append", "root=/dev/vda", "-initrd", "a.img"),
    ],
)
def test_media_that_are_read_only_removable_or_missing_are_no_drives(arguments: tuple[str, ...]) -> None:
    assert drives_of(["qemu", *arguments]) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("-drive", "file=nbd://host/x"),
        ("-drive", "file=rbd:pool/image,format=raw"),
        ("-drive", "file.driver=nbd,file.path=/sock"),
        ("-drive", 'file=json:{"driver":"raw"}'),
        ("-drive", "file=a.img,file.driver=blkdebug"),
        ("-drive", "driver=null-co,if=virtio"),
        ("-hda", "nbd:unix:/sock"),
        ("-blockdev", "driver=nbd,node-name=n,server.type=unix,server.path=/sock"),
        ("-blockdev", "driver=raw,node-name=n,file=elsewhere"),
        ("-blockdev", "driver=raw,node-name=n,file.driver=nbd,file.server.type=unix,file.server.path=/s"),
    ],
)
def test_what_is_behind_something_else_has_no_path(arguments: tuple[str, ...]) -> None:
    assert [drive.path for drive in drives_of(["qemu", *arguments])] == [""]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("-drive", "file=d.img,format=raw,offset=512"), "an overlay cannot have its offset="),
        (("-drive", "file=d.img,encrypt.key-secret=s"), "an overlay cannot have its encrypt.key-secret="),
        (("-drive", "file=d.img,format=vmdk"), "its format is vmdk"),
        (("-drive", "file=d.img,id=d", "-set", "drive.d.file=e.img"), "-set 'drive.d.file=e.img' changes it"),
        (("-blockdev", "driver=luks,node-name=l,file.driver=file,file.filename=d.img"), "its format is luks"),
        (
            ("-blockdev", "driver=raw,node-name=r,size=512,file.driver=file,file.filename=d.img"),
            "an overlay cannot have its size=",
        ),
        (
            ("-blockdev", "driver=qcow2,node-name=r,data-file.driver=file,file.driver=file,file.filename=d.img"),
            "an overlay cannot have its data-file.driver=",
        ),
    ],
)
def test_what_an_overlay_cannot_stand_for_is_named(arguments: tuple[str, ...], reason: str) -> None:
    assert [(drive.path, drive.refusal) for drive in drives_of(["qemu", *arguments])] == [("d.img", reason)]


def test_a_file_that_two_nodes_use_is_not_rewritten_for_one_of_them() -> None:
    nodes = ["driver=file,node-name=f,filename=d.img", "driver=raw,node-name=a,file=f", "driver=raw,node-name=b,file=f"]
    drives = drives_of(["qemu", *(each for node in nodes for each in ("-blockdev", node))])
    assert [drive.refusal for drive in drives] == ["node 'f' has a second user"] * 2


@pytest.mark.parametrize("text", ["{", '{"a":' * 100_000])
def test_what_is_not_json_is_refused(text: str) -> None:
    with pytest.raises(RequestError, match="a QEMU -blockdev is not JSON"):
        drives_of(["qemu", "-blockdev", text])


NAMES = st.sampled_from(
    ["if", "id", "index", "cache", "aio", "discard", "werror", "serial", "file.locking", "l2-cache-size"]
)
VALUES = st.text(st.characters(codec="ascii", exclude_characters="\0"), min_size=1, max_size=8).filter(
    lambda text: text != "floppy"
)


@given(st.dictionaries(NAMES, VALUES), st.text(min_size=1).filter(lambda text: "\0" not in text), st.data())
def test_whatever_else_a_drive_has_stays_to_the_letter(
    others: dict[str, str], overlay: str, data: st.DataObject
) -> None:
    pairs = data.draw(st.permutations([*others.items(), ("file", "/d,=.img"), ("format", "raw")]))
    (drive,) = drives_of(["qemu", "-drive", join_properties(pairs)])
    assert drive.path == "/d,=.img"
    ((position, text),) = drive.on(overlay).items()
    changed = {"file": overlay, "format": "qcow2"}
    assert position == 2
    assert split_properties(text) == [(name, changed.get(name, value)) for name, value in pairs]
