"""How much longer does a pause get where a guest's disks go on with overlays?

A guest with four disks (virtio-blk with a thread of its own, virtio-scsi, IDE on a backing file, flash) is saved with
``--disks none`` and ``overlay`` in turn; overlays are merged back after each. Prints every sample as JSON.

    sudo .venv/bin/python bench/disks_of_pauses.py [PAIRS]
"""

from __future__ import annotations

import functools
import json
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.disks_of_guests import make_images, many_disks
from support.qemu import boot_from

import parallel_fixedram
from parallel_fixedram import Capturing, Disks, DisksMode
from parallel_fixedram.core.save_options import CaptureMode
from parallel_fixedram.experiments.boot_sector import boot_image

PARTS = ("pause", "stop", "ram", "device_state", "disks", "cont")


def main(pairs: int) -> None:
    """Run ``pairs`` pairs for each capture."""
    samples: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory(dir=".") as name:
        folder = Path(name).absolute()
        images = folder / "images"
        images.mkdir()
        floppy = folder / "floppy"
        floppy.write_bytes(boot_image())
        with many_disks(make_images(images), boot_from(floppy)) as guest:
            machine = functools.partial(parallel_fixedram.open_qemu, str(guest.monitor_path))
            for capture in (CaptureMode.SNAPSHOT, CaptureMode.COMPARE):
                for number in range(2 * pairs):
                    mode = (DisksMode.NONE, DisksMode.OVERLAY)[(number + number // 2) % 2]
                    path = folder / "saved"
                    report = parallel_fixedram.save(
                        machine, str(path), capture=Capturing(mode=capture), disks=Disks(mode=mode)
                    )
                    path.unlink()
                    seconds = report.seconds
                    found = {name: getattr(seconds, name) for name in PARTS} | {"prepared": report.phases[0].seconds}
                    samples.setdefault(f"{capture} {mode}", []).append(found)
                    if mode is DisksMode.OVERLAY:
                        with machine() as opened:
                            parallel_fixedram.commit_disks(opened)
    print(json.dumps(samples))
    for way, each in samples.items():
        for key in (*PARTS, "prepared"):
            milliseconds = [1000 * one[key] for one in each]
            print(f"{way:20} {key:9} median {statistics.median(milliseconds):7.2f} ms, most {max(milliseconds):7.2f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10)
