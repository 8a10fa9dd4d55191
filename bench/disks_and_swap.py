"""What do a guest's unwritten disk and its RAM in swap cost it when it is saved?

    python bench/disks_and_swap.py [--repeats 5] [--folder DIR] [--json FILE] [disks swap]

disks: a guest with a disk (IDE, writeback) of whose file 300 MiB or 2 GiB are dirty in the page cache; saved with the
disk synced before `stop` and without, in turning order. swap (root): a QEMU held to 100 MiB whose
guest never looks at 160 MiB of its 176 MiB of RAM, which are in swap; saved by us with two channels, without giving
back what was in swap, and by QEMU itself. Every sample is kept. Guests run under TCG.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from support.qemu import QemuProcess, Ram, boot_from
from support.qemu_saved import migrate
from support.tight_memory import group, swap

import parallel_fixedram
from parallel_fixedram.core.errors import FixedRamError
from parallel_fixedram.core.reports.save import SaveReport
from parallel_fixedram.core.units import GIB, MIB
from parallel_fixedram.experiments.boot_sector import boot_image
from parallel_fixedram.host import linux
from parallel_fixedram.host.memory import mapped_source, process_memory
from parallel_fixedram.machines.qemu.machine import QemuMachine

Sample = dict[str, Any]
LIMIT, RAM, COLD = 100 * MIB, 176 * MIB, range(8 * MIB, 168 * MIB)


def save(guest: QemuProcess, path: Path) -> SaveReport:
    """Ours, with two channels, into a new file."""
    path.unlink(missing_ok=True)
    machine = functools.partial(parallel_fixedram.open_qemu, str(guest.monitor_path))
    return parallel_fixedram.save(
        machine,
        str(path),
        gate=parallel_fixedram.Gate(channels=2, experimental_multifd=True),
        disks=parallel_fixedram.Disks(mode=parallel_fixedram.DisksMode.NONE),
    )


def dirty(guest: QemuProcess, disk: Path, size: int) -> None:
    """Leave so many bytes of the file in the page cache; QEMU flushes it, because it wrote a little of it itself."""
    os.sync()
    data = os.urandom(8 * MIB)
    with open(disk, "r+b", buffering=0) as file:
        for _ in range(0, size, len(data)):
            file.write(data)
    guest.hmp('qemu-io -d ide "write -P 1 0 4k"')


def disks(folder: Path, repeats: int) -> Iterator[Sample]:
    """Stop and pause, with the disk synced before and without."""
    disk = folder / "disk"
    disk.touch()
    os.truncate(disk, 4 * GIB)
    image = folder / "image"
    image.write_bytes(boot_image())
    drive = ("-drive", f"file={disk},format=raw,if=none,id=disk", "-device", "ide-hd,drive=disk,id=ide")
    with QemuProcess(*boot_from(image), *drive, ram=Ram(512 * MIB, "memfd")) as guest:
        guest.wait_serial("C")
        save(guest, folder / "saved")
        for size in (300 * MIB, 2 * GIB):
            for turn in range(repeats):
                for way in ("synced", "not")[:: 1 if turn % 2 else -1]:
                    dirty(guest, disk, size)
                    with mock.patch.object(QemuMachine, "sync_disks", synced if way == "synced" else lambda _self: ()):
                        seconds = save(guest, folder / "saved").seconds
                    names = ("sync_disks", "stop", "pause", "total")
                    yield {"dirty": size, "way": way, **{name: getattr(seconds, name) for name in names}}


synced = QemuMachine.sync_disks


def cold(guest: QemuProcess) -> None:
    """Fill what the guest does not look at, and page it out."""
    block = next(each for each in guest.ramblocks() if each.name == "m")
    with open(f"/proc/{guest.pid}/mem", "r+b", buffering=0) as ram:
        ram.seek(block.hva + COLD.start)
        for _ in range(0, len(COLD), MIB):
            ram.write(os.urandom(MIB))
    pidfd = os.pidfd_open(guest.pid)
    where = np.array([[block.hva + COLD.start, len(COLD)]], np.uint64)
    linux.process_madvise(pidfd, where, linux.MADV_PAGEOUT)
    os.close(pidfd)


def memory(guest: QemuProcess) -> dict[str, int]:
    """MiB resident and, of private memory, in swap; nothing of a process that is gone."""
    try:
        status = Path(f"/proc/{guest.pid}/status").read_text()
    except OSError:
        return {}
    return {name: int(size) >> 10 for name, size in re.findall(r"(VmRSS|VmSwap):\s+(\d+) kB", status)}


def in_swap(folder: Path, backend: Literal["private", "memfd"], way: str) -> Sample:
    """One save of a guest that is held to less memory than it has."""
    image = folder / "image"
    image.write_bytes(boot_image(first=MIB, end=3 * MIB, hz=50))
    has_swap = mapped_source.has_swap if way == "ours" else lambda: False
    with (
        swap(768 * MIB) as space,
        group("parallel-fixedram") as tight,
        QemuProcess(*boot_from(image), ram=Ram(RAM, backend), wrapper=tight.entry()) as guest,
        mock.patch.object(mapped_source, "has_swap", has_swap),
        mock.patch.object(process_memory, "has_swap", has_swap),
    ):
        guest.wait_serial("C")
        cold(guest)
        tight.limit(LIMIT)
        found: Sample = {"backend": backend, "way": way, "before": memory(guest), "swap_before": space.used() // MIB}
        started = time.perf_counter()
        try:
            if way == "QEMU":
                migrate(guest, folder / "saved")
                guest.cont()
            else:
                found["pause"] = save(guest, folder / "saved").seconds.pause
        except FixedRamError as error:
            found["error"] = error.message
        found |= {"seconds": time.perf_counter() - started, "after": memory(guest), "swap_after": space.used() // MIB}
        return found | {"killed": tight.killed()}


def swapped(folder: Path, repeats: int) -> Iterator[Sample]:
    """Memory before and after, and the time."""
    backends: tuple[Literal["private", "memfd"], ...] = ("private", "memfd")
    for _ in range(repeats):
        for backend in backends:
            for way in ("ours", "not given back", "QEMU"):
                yield in_swap(folder, backend, way)
                (folder / "saved").unlink(missing_ok=True)


WHAT: dict[str, Callable[[Path, int], Iterator[Sample]]] = {"disks": disks, "swap": swapped}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", choices=[*WHAT, []], help="all of it if nothing is named")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", help="where disk and file lie (default: a new one in the working directory)")
    parser.add_argument("--json", help="write the samples there")
    args = parser.parse_args()
    samples: dict[str, list[Sample]] = {}
    with tempfile.TemporaryDirectory(dir=args.folder or ".") as name:
        for what in args.what or WHAT:
            for sample in WHAT[what](Path(name), args.repeats):
                print(sample, flush=True)
                samples.setdefault(what, []).append(sample)
    if args.json:
        Path(args.json).write_text(json.dumps(samples, indent=1) + "\n")


if __name__ == "__main__":
    main()
