"""Files cut off and files with a flipped byte: never exit code 0, never a traceback, never a touched destination."""

import json

import pytest
from support.cli import call, done, refused, run, unchanged
from support.pictures import PAGE, content

RAM, ROM = "AB-c" * 16 + "D", "-0zY"


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    """A saved file of two blocks, and what ``inspect`` says of it."""
    folder = tmp_path_factory.mktemp("image")
    for name, picture in (("ram", RAM), ("rom", ROM)):
        (folder / name).write_bytes(content(picture))
    argv = [f"--ram={name}={folder / name}" for name in ("ram", "rom")]
    done(call("save", folder / "ours.mr", *argv))
    described = json.loads(call("inspect", folder / "ours.mr", "--json").out)
    return (folder / "ours.mr").read_bytes(), described


def boundaries(described):
    """The parts of the file in order: name -> offset of the first byte."""
    parts = {"file header": 0, "configuration": 8}
    for block in described["blocks"]:
        parts |= {
            f"record of {block['idstr']}": block["record_offset"],
            f"header of {block['idstr']}": block["bitmap_offset"] - 20,
            f"bitmap of {block['idstr']}": block["bitmap_offset"],
            f"gap of {block['idstr']}": block["bitmap_offset"] + -(-block["pages"] // 64) * 8,
            f"pages of {block['idstr']}": block["pages_offset"],
        }
    parts["end of RAM"] = block["pages_offset"] + block["used_length"]
    parts["VM description"] = described["stream_end"] - 60
    parts["zeros"] = described["stream_end"]
    parts["trailer"] = -(-described["stream_end"] // PAGE) * PAGE
    parts["footer"] = described["size"] - 56
    parts["end"] = described["size"]
    return parts


PARTS = [
    "file header", "configuration",
    "record of ram", "header of ram", "bitmap of ram", "gap of ram", "pages of ram",
    "record of rom", "header of rom", "bitmap of rom", "gap of rom", "pages of rom",
    "end of RAM", "VM description", "zeros", "trailer", "footer",
]  # fmt: skip


def test_the_parts_cover_the_file(image):
    parts = boundaries(image[1])
    assert list(parts) == [*PARTS, "end"]
    assert sorted(parts.values()) == list(parts.values())


@pytest.mark.parametrize("part", PARTS)
def test_a_file_cut_off_in_any_part_is_refused_by_every_verb(image, tmp_path, part):
    data, described = image
    parts = boundaries(described)
    start, after = parts[part], list(parts.values())[list(parts).index(part) + 1]
    (tmp_path / "whole.mr").write_bytes(data)
    (tmp_path / "old").write_bytes(content("Z" * len(RAM)))
    cut = tmp_path / "cut.mr"
    for length in (start, (start + after) // 2, after - 1):
        cut.write_bytes(data[:length])
        with unchanged(tmp_path):
            refused(call("verify", cut), 3, "")
            refused(call("restore", cut, "--ram", f"ram={tmp_path / 'old'}"), 3, "")
    with unchanged(tmp_path):  # one byte is missing
        refused(call("verify", cut, "--quick"), 3, "")
        refused(call("inspect", cut), 3, "")
        refused(call("diff", cut, tmp_path / "whole.mr"), 3, "")
        refused(call("diff", tmp_path / "whole.mr", cut), 3, "")
        refused(call("restore", cut, "--ram", f"rom={tmp_path / 'new'}"), 3, "")


@pytest.mark.parametrize("zeros", [1, 4095, 4096, 100_000])
def test_zeros_behind_the_end_are_no_part_of_the_file_and_anything_else_is_refused(image, tmp_path, zeros):
    (tmp_path / "long.mr").write_bytes(image[0] + bytes(zeros))
    done(call("verify", tmp_path / "long.mr"))
    (tmp_path / "long.mr").write_bytes(image[0] + bytes(zeros - 1) + b"x")
    refused(call("verify", tmp_path / "long.mr"), 3, "")


@pytest.mark.parametrize("part", PARTS)
def test_a_flipped_byte_in_any_part_never_verifies(image, tmp_path, part):
    data, described = image
    parts = boundaries(described)
    start, after = parts[part], list(parts.values())[list(parts).index(part) + 1]
    bad = tmp_path / "bad.mr"
    for offset in {start, (start + after) // 2, after - 1}:
        damaged = bytearray(data)
        damaged[offset] ^= 0x40
        bad.write_bytes(damaged)
        result = call("verify", bad)
        assert result.code in (1, 3), f"byte {offset:#x} of {part}: {result}"
        assert "Traceback" not in result.err
        if result.code == 3:
            refused(result, 3, "")
        else:
            assert result.out.splitlines()[-1].startswith(f"{bad}: DIFFERS (structure, digests checked")


@pytest.mark.parametrize(("idstr", "picture", "page"), [("ram", RAM, 0), ("ram", RAM, 64), ("rom", ROM, 3)])
def test_a_flipped_byte_of_a_page_is_pinned_to_block_page_and_offset(image, tmp_path, idstr, picture, page):
    data, described = image
    block = next(each for each in described["blocks"] if each["idstr"] == idstr)
    offset = block["pages_offset"] + page * PAGE
    damaged = bytearray(data)
    damaged[offset + 17] ^= 1
    bad = tmp_path / "bad.mr"
    bad.write_bytes(damaged)

    result = run("verify", bad)
    assert (result.code, result.err) == (1, "")
    assert result.out.splitlines()[0] == f"{bad}: block {idstr!r} page {page} at {offset:#x}: does not match its digest"

    result = call("verify", bad, "--json")
    assert (result.code, result.json["ok"], result.json["bad_pages"]) == (1, False, 1)
    assert result.json["differences"] == [
        {"what": "does not match its digest", "idstr": idstr, "first_page": page, "pages": 1, "offset": offset}
    ]
    assert call("verify", bad, "--quick").code == 0  # what --quick promises not to see

    with unchanged(tmp_path):
        result = call("restore", bad, "--ram", f"{idstr}={tmp_path / 'new'}", "--verify")
        refused(result, 1, f"block {idstr!r} page {page} at {offset:#x}: does not match its digest\n", "1 bad page")
    (tmp_path / "whole.mr").write_bytes(data)
    result = call("diff", tmp_path / "whole.mr", bad)
    assert (result.code, result.out) == (1, f"block {idstr!r} page {page} at {offset:#x}: differs\n1 differing page\n")


def test_a_byte_in_the_place_of_a_zero_page_is_found(image, tmp_path):
    data, described = image
    offset = described["blocks"][0]["pages_offset"] + 2 * PAGE
    bad = tmp_path / "bad.mr"
    bad.write_bytes(data[:offset] + b"\x01" + data[offset + 1 :])
    result = call("verify", bad)
    assert result.code == 1
    assert f"block 'ram' page 2 at {offset:#x}: is zero by the bitmap, but its place in the file is not" in result.out


def test_more_differences_than_fit_a_screen_are_counted(tmp_path):
    (tmp_path / "ram").write_bytes(content("A-" * 40))
    done(call("save", tmp_path / "a.mr", "--ram", f"ram={tmp_path / 'ram'}"))
    (tmp_path / "ram").write_bytes(content("B-" * 40))
    result = call("verify", tmp_path / "a.mr", "--ram", f"ram={tmp_path / 'ram'}")
    lines = result.out.splitlines()
    assert result.code == 1
    assert lines[20] == f"{tmp_path / 'a.mr'}: ... and more, 40 pages in all"
    assert len([line for line in lines if "differs from RAM" in line]) == 20
    assert lines[-1] == f"{tmp_path / 'a.mr'}: DIFFERS (structure, digests, RAM of ram checked)"
    assert (
        len(call("verify", tmp_path / "a.mr", "--ram", f"ram={tmp_path / 'ram'}", "--json").json["differences"]) == 40
    )
