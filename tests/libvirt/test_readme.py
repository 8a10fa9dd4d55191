"""What the README shows of libvirt is done as it stands, to a domain of that name."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.libvirt_domains import MIB, Domain
from support.qemu_linux import LinuxGuest

pytestmark = pytest.mark.usefixtures("library")

README = Path(__file__).parents[2] / "README.md"
DISK = "<disk type='file'><source file='{}'/><target dev='vda' bus='virtio'/></disk>"


def test_the_commands_of_the_readme_work_in_their_order(tmp_path: Path, linux: LinuxGuest) -> None:
    section = README.read_text().split("\n## With libvirt\n")[1].split("\n## ")[0]
    commands = [re.sub(" +#.*", "", line) for line in re.findall(r"^\$ (.*)$", section, re.MULTILINE)]
    assert commands.pop(0) == "pip install '.[libvirt]'"  # which whoever runs this has done
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(MIB))
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    with Domain(tmp_path, linux, devices=DISK.format(image)) as domain:
        domain.start()
        tick, _ = domain.tick()
        for command in commands:
            words = [domain.name if word == "vm" else word for word in command.split()]
            ended = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
            assert ended.returncode == 0, (words, ended.stderr)
        domain.serial.take()
        number, found = domain.tick()
        assert (number > tick, found) == (True, linux.md5())
        assert domain.state == "running"
