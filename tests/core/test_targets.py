"""Which guests can be saved from outside."""

import pytest

from parallel_fixedram.core.errors import MachineError
from parallel_fixedram.core.targets import check_target, recorded_page_bits


@pytest.mark.parametrize(
    ("target", "machine", "bits"),
    [
        ("x86_64", "pc-q35-10.0", None),
        ("x86_64", "microvm", None),
        ("i386", "isapc", None),
        ("aarch64", "virt-10.0", 12),
        ("aarch64", "virt-2.8", 12),
        ("aarch64", "virt-2.12", 12),
        ("aarch64", "sbsa-ref", 12),
        ("arm", "virt-6.2", 12),
    ],
)
def test_what_was_seen_to_load_is_accepted(target, machine, bits):
    check_target(target, machine)
    assert recorded_page_bits(target) == bits


@pytest.mark.parametrize(
    ("target", "machine"),
    [
        *(("aarch64", machine) for machine in ("virt-2.6", "virt-2.7", "raspi3b", "xlnx-versal-virt", "virt", "virt-")),
        *(("arm", machine) for machine in ("vexpress-a9", "sbsa-ref2", "my-virt-10.0")),
    ],
)
def test_of_arms_machines_those_with_other_pages_are_refused(target, machine):
    with pytest.raises(MachineError, match=f"machine type '{machine}' of target '{target}' cannot be saved: of Arm's"):
        check_target(target, machine)


@pytest.mark.parametrize("target", ["riscv64", "loongarch64", "mips", "ppc64", "s390x", "of the future", ""])
def test_a_target_that_nobody_has_tried_is_refused(target):
    with pytest.raises(MachineError, match=f"a guest of target '{target}' cannot be saved: "):
        check_target(target, "virt-10.0")


def test_what_has_no_architecture_records_no_page_bits():
    assert recorded_page_bits("") is None
