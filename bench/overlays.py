"""How much longer does a pause get where a guest's disks go on with overlays?

A guest with one disk (virtio-blk with a thread of its own), and one with three more (virtio-scsi, IDE on a backing
file, flash), on the file system of this folder, are saved with ``--disks none`` and ``overlay`` in turn; overlays are
merged back after each. Prints every sample as JSON.

    sudo .venv/bin/python bench/overlays.py [PAIRS]
"""

from __future__ import annotations

import functools
import itertools
import json
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.disks_of_guests import make_images
from support.qemu import QemuProcess, Ram, boot_from

import parallel_fixedram
from parallel_fixedram import Capturing, Disks, DisksMode
from parallel_fixedram.core.save_options import CaptureMode
from parallel_fixedram.experiments.boot_sector import boot_image
from parallel_fixedram.machines.qemu.machine import QemuMachine

PARTS = ("pause", "stop", "ram", "device_state", "disks", "cont")


def main(pairs: int) -> None:
    """Take ``pairs`` pairs for each guest and capture."""
    samples: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory(dir=".") as name:
        folder = Path(name).absolute()
        floppy = folder / "floppy"
        floppy.write_bytes(boot_image())
        (folder / "images").mkdir()
        images = make_images(folder / "images")
        for what, args in (("1 disk", images.one()), ("4 disks", images.args())):
            with QemuProcess(*boot_from(floppy), *args, ram=Ram(), machine="pc") as guest:
                guest.wait_serial("C")
                machine = functools.partial(parallel_fixedram.open_qemu, str(guest.monitor_path))
                for capture, mode in itertools.product((CaptureMode.SNAPSHOT, CaptureMode.COMPARE), in_turn(pairs)):
                    found = save(machine, folder / "saved", capture, mode)
                    samples.setdefault(f"{what}, {capture}, {mode}", []).append(found)
    print(json.dumps(samples))
    for way, each in samples.items():
        for key in each[0]:
            milliseconds = [1000 * one[key] for one in each]
            low, middle, high = min(milliseconds), statistics.median(milliseconds), max(milliseconds)
            print(f"{way:28} {key:12} {middle:7.2f} ms ({low:.2f}-{high:.2f})")


def in_turn(pairs: int) -> list[DisksMode]:
    """Each once a pair, and another one first each time."""
    both = [DisksMode.NONE, DisksMode.OVERLAY]
    return [mode for number in range(pairs) for mode in (both if number % 2 else both[::-1])]


def save(machine: Callable[[], QemuMachine], path: Path, capture: CaptureMode, mode: DisksMode) -> dict[str, float]:
    """A save and what it took, seconds; afterwards the guest's disks are what they were."""
    report = parallel_fixedram.save(machine, str(path), capture=Capturing(mode=capture), disks=Disks(mode=mode))
    path.unlink()
    if mode is DisksMode.OVERLAY:
        with machine() as opened:
            parallel_fixedram.commit_disks(opened)
    return {part: getattr(report.seconds, part) for part in PARTS} | {"before": report.phases[0].seconds}


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10)
