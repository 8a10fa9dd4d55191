"""Images by libvirt are read here, and images by us are loaded, edited and described by a stock libvirt."""

from pathlib import Path

from support.libvirt_domains import Domain, virsh
from support.libvirt_images import put_behind
from support.qemu_linux import LinuxGuest

from parallel_fixedram.format.libvirt_image import compose_libvirt_header
from parallel_fixedram.image.image import Image
from parallel_fixedram.verbs.diff import diff
from parallel_fixedram.verbs.verify import verify


def test_libvirt_restores_an_image_of_ours_and_the_domain_runs_on(tmp_path: Path, linux: LinuxGuest) -> None:
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    with Domain(tmp_path, linux) as domain:
        domain.start()
        domain.tick()
        virsh("save", domain.name, theirs, "--image-format", "sparse")
        with Image(str(theirs)) as image:
            assert image.file.libvirt
            xml = image.file.libvirt.xml
        put_behind(compose_libvirt_header(xml, running=True), theirs, ours, main="pc.ram")
        assert diff(str(theirs), str(ours)).equal
        assert verify(str(ours)).ok
        assert virsh("save-image-dumpxml", ours) == virsh("save-image-dumpxml", theirs)
        domain.serial.take()
        for options in ([], ["--parallel-channels", "2"], ["--bypass-cache"]):
            virsh("restore", ours, *options)
            assert domain.state == "running"
            number, found = domain.tick()
            assert domain.tick() == (number + 1, linux.md5())
            assert found == linux.md5()
            domain.destroy()
