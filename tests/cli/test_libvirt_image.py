"""Save images by libvirt on the command line."""

import pytest
from support.cli import call, done, refused
from support.libvirt_images import libvirt_head
from support.pictures import content
from support.streamwriter import Block, stream

M = Block(name="pc.ram", picture="A0C")
XML = b"""<domain type='qemu'><name>vm\xc2\x9b2J</name><uuid>77bd52df-5b99-46cb-853e-89661664bd7c</uuid>
<memory unit='MiB'>512</memory><devices>
<disk type='file'><source file='/images/vm.qcow2'/><target dev='vda'/></disk>
<disk type='file' device='cdrom'><target dev='sda'/></disk>
<graphics type='vnc' passwd='secret'/></devices></domain>"""


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "IMAGE"
    path.write_bytes(stream(M, head=libvirt_head(XML)).data)
    return path


def test_inspect_shows_the_domain_and_no_secret_of_it(image):
    result = done(call("inspect", image))
    assert f"{image}: libvirt save image of" in result.out
    for line in (
        "domain        vm\\x9b2J, 77bd52df-5b99-46cb-853e-89661664bd7c",
        "memory        512 MiB, running when saved",
        "disk          vda, disk, /images/vm.qcow2",
        "disk          sda, cdrom, no medium",
        f"XML           {len(XML)} bytes, room for {len(XML) + 1 + 65536}",
        "machine       pc-q35-10.0",
    ):
        assert f"\n{line}\n" in result.out
    assert "secret" not in result.out
    told = call("inspect", image, "--json").json
    assert told["schema"] == "parallel_fixedram.inspect"
    assert told["libvirt"] == {
        "complete": True,
        "format": "sparse",
        "running": True,
        "domain": "vm\x9b2J",
        "uuid": "77bd52df-5b99-46cb-853e-89661664bd7c",
        "memory": 512 << 20,
        "disks": [
            {"device": "vda", "kind": "disk", "source": "/images/vm.qcow2"},
            {"device": "sda", "kind": "cdrom", "source": ""},
        ],
        "xml_bytes": len(XML),
        "xml_room": len(XML) + 1 + 65536,
    }


def test_every_verb_that_reads_a_file_reads_an_image(image, tmp_path):
    done(call("verify", image))
    done(call("diff", image, image))
    done(call("restore", image, "--ram", f"pc.ram={tmp_path / 'ram'}"))
    assert (tmp_path / "ram").read_bytes() == content(M.picture)


@pytest.mark.parametrize(
    ("head", "what", "why"),
    [
        (libvirt_head(XML, format=0), ", raw\n", "libvirt save image in format raw"),
        (libvirt_head(XML, format=1), ", gzip\n", "libvirt save image in format gzip"),
        (libvirt_head(XML, magic=b"LibvirtQemudPart"), ", sparse, NOT COMPLETE\n", "not complete"),
    ],
    ids=["raw", "gzip", "not complete"],
)
def test_an_image_without_pages_is_inspected_and_refused_by_all_other_verbs(tmp_path, head, what, why):
    path = tmp_path / "IMAGE"
    path.write_bytes(stream(M, head=head).data)
    shown = done(call("inspect", path))
    assert what in shown.out
    assert "\nmemory        512 MiB, " in shown.out
    assert why in shown.err
    told = call("inspect", path, "--json")
    assert (told.code, told.json["schema"], told.err) == (0, "parallel_fixedram.inspect_libvirt", "")
    qemu = ("--", "qemu-system-x86_64", "-m", "1M")
    for argv in (
        ("verify", path),
        ("verify", path, "--load", *qemu),
        ("diff", path, path),
        ("restore", path, "--ram", f"pc.ram={tmp_path / 'ram'}"),
        ("restore", path, *qemu),
        ("clone", path, *qemu),
    ):
        refused(call(*argv), 3, why)
    assert not (tmp_path / "ram").exists()
