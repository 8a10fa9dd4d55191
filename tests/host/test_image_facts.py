"""What is seen of an image: its length, the time of its last write, its ends."""

import os
import subprocess

import pytest

from parallel_fixedram.core.disks import ENDS
from parallel_fixedram.core.errors import NoFileError, RequestError
from parallel_fixedram.host.files.image_facts import image_now


@pytest.mark.parametrize("size", [0, 1, ENDS - 1, ENDS, ENDS + 1, 2 * ENDS - 1, 2 * ENDS, 2 * ENDS + 1, 3 * ENDS])
def test_every_byte_of_both_ends_and_the_length_are_in_the_facts(tmp_path, size):
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(size))
    os.utime(image, ns=(5, 7))
    before = image_now(str(image), "raw")
    assert (before.path, before.format, before.bytes, before.modified_ns) == (str(image), "raw", size, 7)
    digests = {before.digest}
    places = {0, ENDS - 1, size - ENDS, size - 1} & set(range(size))
    for place in places:
        image.write_bytes(bytes(place) + b"x" + bytes(size - place - 1))
        digests.add(image_now(str(image), "raw").digest)
    assert len(digests) == 1 + len(places)


def test_a_name_without_folders_is_one_from_here(tmp_path, monkeypatch):
    (tmp_path / "disk.img").write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    assert image_now("disk.img", "raw").path == str(tmp_path / "disk.img")


def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for wrong in (tmp_path, tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(RequestError, match="is not a regular file"):
            image_now(str(wrong), "raw")
    with pytest.raises(NoFileError, match=r"cannot open '.*nothing': no such file"):
        image_now(str(tmp_path / "nothing"), "raw")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a block device of a file")
def test_a_block_device_has_a_size_and_no_time(tmp_path):
    image = tmp_path / "disk.img"
    image.write_bytes(b"x" + bytes(3 * ENDS - 1))
    made = subprocess.run(["losetup", "--find", "--show", image], capture_output=True, text=True)
    if made.returncode:  # containers are often given none
        pytest.skip(f"no loop devices here: {made.stderr.strip()}")
    try:
        device, file = image_now(made.stdout.strip(), "raw"), image_now(str(image), "raw")
    finally:
        subprocess.run(["losetup", "--detach", made.stdout.strip()], check=True)
    assert (device.bytes, device.modified_ns, device.digest) == (3 * ENDS, 0, file.digest)
