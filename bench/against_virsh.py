"""How long does a domain stand still, and how long does it take, until its image is there: ours, and virsh save's?

One domain (private RAM, a guest that has filled a share of it and rewrites pages) is saved in turn by ``virsh save
--image-format sparse`` in each of its modes, which ends it, and restored from there; and by us, by each capture. Each
is the first of its pair as often as not. Images are on stable storage when time stops: virsh has no option for
that, so ``sync`` follows it, and is given apart. Prints every sample as JSON.

    sudo .venv/bin/python bench/against_virsh.py [PAIRS [GIB]]
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.libvirt_domains import Domain, libvirtd, virsh

import parallel_fixedram
from parallel_fixedram import Capturing, Disks, DisksMode
from parallel_fixedram.core.save_options import CaptureMode
from parallel_fixedram.experiments.boot_sector import FILLED, fill_image

GIB = 1 << 30
SHARE = 0.55
DIRTY_RATE = 8 << 20
THEIRS = {
    "virsh save, sparse": [],
    "virsh save, sparse, 2 channels": ["--parallel-channels", "2"],
    "virsh save, sparse, bypass-cache": ["--bypass-cache"],
    "virsh save, sparse, 2 channels, bypass-cache": ["--parallel-channels", "2", "--bypass-cache"],
}
OURS = {f"save, {mode}": mode for mode in (CaptureMode.SNAPSHOT, CaptureMode.COMPARE, CaptureMode.STOPPED)}


def main(pairs: int, gib: float) -> None:
    """Take ``pairs`` samples of each way, in turn."""
    ways: dict[str, Callable[[Domain, Path], dict[str, float]]] = {}
    ways |= {name: theirs(options) for name, options in THEIRS.items()}
    ways |= {name: ours(mode) for name, mode in OURS.items()}
    samples: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    with (
        tempfile.TemporaryDirectory(dir=".") as name,
        libvirtd(Path(name).absolute()),
        filled(Path(name).absolute(), int(gib * GIB)) as domain,
    ):
        ours(CaptureMode.STOPPED)(domain, Path(name).absolute() / "image")  # measures once what writes cost here
        for number in range(pairs):
            for way in list(ways)[:: -1 if number % 2 else 1]:
                samples[way].append(ways[way](domain, Path(name).absolute() / "image"))
    print(json.dumps(samples))
    for way, each in samples.items():
        for key in each[0]:
            values = [one[key] for one in each]
            low, middle, high = min(values), statistics.median(values), max(values)
            print(f"{way:46} {key:8} {1000 * middle:8.1f} ms ({1000 * low:.1f}-{1000 * high:.1f})")


@contextmanager
def filled(folder: Path, size: int) -> Iterator[Domain]:
    """A domain whose guest has filled its RAM and goes on rewriting pages."""
    image = folder / "boot"
    image.write_bytes(fill_image(size=size, share=SHARE, dirty_rate=DIRTY_RATE))
    disk = f"<disk type='file' device='floppy'><source file='{image}'/><target dev='fda'/><readonly/></disk>"
    with Domain(folder, memory=size, devices=disk) as domain:
        domain.xml = domain.xml.replace("</os>", "<boot dev='fd'/></os>")
        domain.start()
        domain.wait(f"({FILLED})")
        yield domain


def theirs(options: list[str]) -> Callable[[Domain, Path], dict[str, float]]:
    """virsh save, which stops the domain at once and ends it."""

    def save(domain: Domain, path: Path) -> dict[str, float]:
        os.sync()
        started = time.perf_counter()
        virsh("save", domain.name, path, "--image-format", "sparse", *options)
        saved = time.perf_counter()
        subprocess.run(["sync", path], check=True)
        synced = time.perf_counter()
        virsh("restore", path)
        path.unlink()
        return {"pause": saved - started, "total": saved - started, "stable": synced - started}

    return save


def ours(mode: CaptureMode) -> Callable[[Domain, Path], dict[str, float]]:
    """Our save, which leaves the domain running."""

    def save(domain: Domain, path: Path) -> dict[str, float]:
        os.sync()
        started = time.perf_counter()
        report = parallel_fixedram.save(
            lambda: parallel_fixedram.open_libvirt(domain.name),
            str(path),
            gate=parallel_fixedram.Gate(channels=None, experimental_multifd=True),
            capture=Capturing(mode=mode),
            disks=Disks(mode=DisksMode.NONE),
        )
        synced = time.perf_counter()
        path.unlink()
        stable = synced - started
        return {"pause": report.seconds.pause, "total": stable - report.seconds.sync, "stable": stable}

    return save


if __name__ == "__main__":
    arguments = [float(each) for each in sys.argv[1:]]
    main(int(arguments[0]) if arguments else 5, arguments[1] if len(arguments) > 1 else 1.0)
