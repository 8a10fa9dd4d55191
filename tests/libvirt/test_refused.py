"""What is in the way of saving a domain: a line that says what it is, and the domain as it was."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.cli import call, refused
from support.libvirt_domains import URI, Domain, virsh

from parallel_fixedram.core.errors import FixedRamError
from parallel_fixedram.machines.libvirt import library

pytestmark = pytest.mark.usefixtures("library")


@pytest.fixture(scope="module")
def domain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Domain]:
    """One that stands still."""
    with Domain(tmp_path_factory.mktemp("domain")) as domain:
        domain.start("--paused")
        yield domain


def test_a_domain_that_is_not_there_or_does_not_run(tmp_path: Path, domain: Domain) -> None:
    refused(call("save", tmp_path / "vm", "--libvirt", "nobody"), 4, f"libvirt at '{URI}' has no domain 'nobody'")
    description = tmp_path / "defined.xml"
    name = f"{domain.name}-defined"
    description.write_text(domain.xml.replace(domain.name, name))
    virsh("define", description)
    try:
        refused(call("save", tmp_path / "vm", "--libvirt", name), 4, f"domain '{name}' is not running")
    finally:
        virsh("undefine", name)
    assert not (tmp_path / "vm").exists()


def test_a_libvirt_that_is_not_there_or_lets_nobody_in(tmp_path: Path, domain: Domain) -> None:
    nowhere = f"qemu+unix:///system?socket={tmp_path / 'nowhere'}"
    message = f"cannot connect to libvirt at '{nowhere}'"
    refused(call("save", tmp_path / "vm", "--libvirt", domain.name, "--connect", nowhere), 4, message)
    tmp_path.chmod(0o700)
    library.library()  # nobody may not read it where it is
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.seteuid(65534)
        try:
            library.open_domain(nowhere, domain.name)
        except FixedRamError as error:
            os.write(write, json.dumps(library.as_failure(error)).encode())
        finally:
            os._exit(0)
    os.close(write)
    os.waitpid(pid, 0)
    failure = json.loads(os.read(read, 1 << 12))
    os.close(read)
    assert failure["kind"] == "MachineError"
    assert "Permission denied" in failure["message"]
    assert "run as root" in failure["hint"]


def test_a_domain_that_somebody_else_saves(tmp_path: Path, domain: Domain) -> None:
    fifo = tmp_path / "dump"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)  # takes nothing, so that the job goes on
    dump = threading.Thread(target=lambda: virsh("dump", domain.name, fifo, "--memory-only", "--live"))
    dump.start()
    try:
        while "None" in virsh("domjobinfo", domain.name):
            assert dump.is_alive()
        message = f"domain '{domain.name}': another job is under way"
        refused(call("save", tmp_path / "vm", "--libvirt", domain.name), 4, message)
    finally:
        os.set_blocking(reader, True)
        while os.read(reader, 1 << 20):
            pass
        os.close(reader)
        dump.join()


def test_without_the_library_the_error_says_how_to_get_it(
    tmp_path: Path, domain: Domain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "libvirt", None)
    message, hint = "libvirt's Python library cannot be used", "parallel-fixedram[libvirt]"
    refused(call("save", tmp_path / "vm", "--libvirt", domain.name), 5, message, hint)


def test_disks_of_a_domain_that_runs_on_have_to_be_thought_of(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(1 << 20))
    disk = f"<disk type='file'><source file='{image}'/><target dev='vda' bus='virtio'/></disk>"
    with Domain(tmp_path, devices=disk) as domain:
        domain.start()
        refused(call("save", tmp_path / "vm", "--libvirt", domain.name), 2, "the guest writes to disk 'virtio-disk0'")
        assert domain.state == "running"
