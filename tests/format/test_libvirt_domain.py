import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallel_fixedram.core.errors import FormatError
from parallel_fixedram.core.reports.libvirt import LibvirtDisk
from parallel_fixedram.format.libvirt_domain import MAX_DEPTH, MAX_DISKS, DomainDefinition, read_domain

UUID = "77bd52df-5b99-46cb-853e-89661664bd7c"
DOMAIN = f"""<domain type='qemu' id='1' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>vm &amp; co</name>
  <uuid>{UUID}</uuid>
  <memory unit='KiB'>524288</memory>
  <currentMemory unit='KiB'>1</currentMemory>
  <devices>
    <disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/a b.qcow2' index='1'/>
      <backingStore type='file'><format type='raw'/><source file='/below'/></backingStore><target dev='vda'/>
    </disk>
    <disk type='block' device='lun'><source dev='/dev/sdz'/><target dev='sda' bus='scsi'/></disk>
    <disk type='file' device='cdrom'><target dev='sdb' bus='sata'/></disk>
    <disk type='volume'><source pool='default' volume='v1'/><target dev='vdb'/></disk>
    <disk type='network' device='disk'>
      <auth username='u'><secret type='ceph' uuid='{UUID}'/></auth>
      <source protocol='rbd' name='pool/image'><host name='h' port='1'/></source><target dev='vdc'/>
    </disk>
    <disk type='nvme' device='disk'><source type='pci' managed='yes'/><target dev='vdd'/></disk>
    <graphics type='vnc' passwd='secret'/>
  </devices>
  <qemu:commandline><qemu:arg value='-S'/></qemu:commandline>
</domain>"""


def small(inner="", name="<name>vm</name>"):
    return f"<domain>{name}{inner}</domain>".encode()


def test_a_domain_is_known_by_name_uuid_memory_and_disks():
    assert read_domain(DOMAIN.encode()) == DomainDefinition(
        name="vm & co",
        uuid=UUID,
        memory=512 << 20,
        disks=(
            LibvirtDisk(device="vda", kind="disk", source="/a b.qcow2"),
            LibvirtDisk(device="sda", kind="lun", source="/dev/sdz"),
            LibvirtDisk(device="sdb", kind="cdrom", source=""),
            LibvirtDisk(device="vdb", kind="disk", source="default/v1"),
            LibvirtDisk(device="vdc", kind="disk", source="rbd:pool/image"),
            LibvirtDisk(device="vdd", kind="disk", source="nvme"),
        ),
    )


def test_what_a_domain_does_not_say_is_empty():
    assert read_domain(small()) == DomainDefinition(name="vm", uuid="", memory=0, disks=())


@pytest.mark.parametrize(
    ("memory", "size"),
    [
        ("<memory>3</memory>", 3072),
        ("<memory unit='b'>4096</memory>", 4096),
        ("<memory unit='MB'>2</memory>", 2_000_000),
        ("<memory unit='TiB'> 1 </memory>", 1 << 40),
    ],
)
def test_memory_is_said_in_any_of_libvirts_units(memory, size):
    assert read_domain(small(memory)).memory == size


BOMB = "<!DOCTYPE d [<!ENTITY a 'ha'><!ENTITY b '&a;&a;&a;&a;&a;&a;&a;&a;'><!ENTITY c '&b;&b;&b;&b;&b;&b;&b;&b;'>]>"


@pytest.mark.parametrize(
    ("xml", "message"),
    [
        (b"", "not well-formed"),
        (b"\xff\xfe", "not well-formed"),
        (b"<domain><name>vm</name>", "not well-formed"),
        (b"<domain><name>vm</name></domain><domain/>", "not well-formed"),
        (b"<?xml version='1.0' encoding='nonsense'?>" + small(), "not well-formed"),
        (b"<?xml version='1.0' encoding='utf-7'?>" + small(), "not well-formed"),
        (small("&a;"), "not well-formed"),
        (BOMB.encode() + small("&c;"), "document type"),
        (b"<!DOCTYPE d SYSTEM 'file:///etc/passwd'>" + small(), "document type"),
        (b"<!DOCTYPE d [<!ENTITY % p SYSTEM 'http://127.0.0.1/'>%p;]>" + small(), "document type"),
        (small("<a>" * (MAX_DEPTH + 1) + "</a>" * (MAX_DEPTH + 1)), "nested deeper"),
        (small("<a>" * 100_000), "nested deeper"),
        (b"<network><name>n</name></network>", "does not describe a libvirt domain"),
        (small(name=""), "does not describe a libvirt domain"),
        (small(name="<name> </name>"), "does not describe a libvirt domain"),
        (small("<memory>many</memory>"), "its memory"),
        (small("<memory>-1</memory>"), "its memory"),
        (small("<memory unit='pages'>1</memory>"), "its memory"),
        (small("<memory>" + "9" * 5000 + "</memory>"), "its memory"),
        (small("<devices>" + "<disk/>" * (MAX_DISKS + 1) + "</devices>"), f"at most {MAX_DISKS}"),
    ],
)
def test_hostile_xml_is_refused_in_one_line(xml, message):
    with pytest.raises(FormatError, match=message) as caught:
        read_domain(xml)
    assert "\n" not in caught.value.message


@given(st.data())
def test_xml_that_was_damaged_is_read_or_refused(data):
    xml = bytearray(DOMAIN.encode())
    for _ in range(data.draw(st.integers(1, 3))):
        xml[data.draw(st.integers(0, len(xml) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = read_domain(bytes(xml))
    except FormatError:
        return
    assert found.name
