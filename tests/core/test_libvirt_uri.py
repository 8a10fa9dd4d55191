import pytest

from parallel_fixedram.core.errors import RequestError
from parallel_fixedram.core.libvirt_uri import SYSTEM, local_uri


@pytest.mark.parametrize(
    "uri", [SYSTEM, "qemu:///session", "qemu+unix:///system", "qemu+unix:///system?socket=/run/libvirt/libvirt-sock"]
)
def test_domains_of_this_host_are_looked_for(uri: str) -> None:
    assert local_uri(uri) == uri


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("qemu+ssh://root@host/system", "leads to another host"),
        ("qemu://host/system", "leads to another host"),
        ("qemu://localhost/system", "leads to another host"),
        ("qemu+tcp:///system", "leads to another host"),
        ("test:///default", "only domains of QEMU can be saved"),
        ("qemu:///embed?root=/tmp", "only domains of QEMU can be saved"),
        ("qemu:///", "only domains of QEMU can be saved"),
        ("", "is not a connection URI of libvirt"),
        ("system", "is not a connection URI of libvirt"),
        ("qemu:/system\n", "is not a connection URI of libvirt"),
    ],
)
def test_whatever_is_not_a_qemu_of_this_host_is_refused_by_name(uri: str, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        local_uri(uri)
