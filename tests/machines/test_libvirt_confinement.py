import pytest

from parallel_fixedram.machines.libvirt.confinement import confined_by


@pytest.mark.parametrize(
    ("labels", "who"),
    [
        ("", ""),
        ("<seclabel type='dynamic' model='dac' relabel='yes'/>", ""),
        ("<seclabel type='none' model='selinux'/>", ""),
        ("<seclabel type='dynamic' model='dac'/><seclabel type='dynamic' model='selinux' relabel='yes'/>", "SELinux"),
        ("<seclabel type='static' model='apparmor'/>", "AppArmor"),
    ],
)
def test_it_is_known_who_may_be_in_the_way_of_a_descriptor(labels: str, who: str) -> None:
    assert confined_by(f"<domain>{labels}</domain>") == who
