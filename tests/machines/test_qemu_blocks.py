"""What is known of a QEMU's RAMBlock by its kind and its length."""

import pytest

from parallel_fixedram.machines.qemu.discovery import FIRMWARE_BYTES, QemuBlock


@pytest.mark.parametrize(
    ("main", "length", "keeps"),
    [
        (False, 4096, True),
        (False, FIRMWARE_BYTES, True),
        (False, FIRMWARE_BYTES + 4096, False),
        (True, 4096, False),
        (True, FIRMWARE_BYTES, False),
    ],
)
def test_zero_pages_are_kept_of_what_may_be_firmware(main: bool, length: int, keeps: bool) -> None:
    block = QemuBlock(
        idstr="b", host_page_size=4096, used_length=length, max_length=length, address=0, main=main, read_only=False
    )
    assert block.keeps_zero_pages == keeps
