"""How long does a guest stand still, and how fast is it back, next to QEMU doing the same on the same guest?

    python bench/against_qemu.py [--repeats 5] [--folder DIR] [--json FILE] [pause first small cold load clone]

Alternates ours and QEMU's in one run, always on new files, and keeps every sample. QEMU saves with mapped-ram and two
multifd channels, with and without direct-io, max-bandwidth 0; its pause is stop, migrate until completed, cont. Ours
is what `save --qmp` with two channels reports. Guests run under TCG.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from support.qemu import QemuProcess, Ram, boot_from, require_qemu
from support.qemu_linux import LinuxGuest, linux_guest

from parallel_fixedram import app, boot
from parallel_fixedram.core.report import BootReport
from parallel_fixedram.core.units import GIB, MIB
from parallel_fixedram.experiments.boot_sector import boot_image
from parallel_fixedram.host.facts import host_facts

Samples = dict[str, list[float]]

QEMU_WAYS: Mapping[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "QEMU mapped-ram, multifd 2": (("mapped-ram", "multifd"), {"multifd-channels": 2}),
    "QEMU mapped-ram, multifd 2, direct-io": (
        ("mapped-ram", "multifd"),
        {"multifd-channels": 2, "direct-io": True},
    ),
}
OURS = "ours, 2 channels"


def fresh(path: Path) -> Path:
    """A path without a file."""
    path.unlink(missing_ok=True)
    return path


def our_pause(guest: QemuProcess, path: Path) -> float:
    """Seconds that the guest stands still; the file is verified before the sample counts."""
    report = app.save(
        lambda: app.open_qemu(str(guest.monitor_path)), str(fresh(path)), channels=2, experimental_multifd=True
    )
    assert app.verify(str(path), quick=True).ok
    return report.seconds.pause


def qemu_pause(guest: QemuProcess, path: Path, way: str) -> float:
    """The same by QEMU's own migration to a file."""
    capabilities, parameters = QEMU_WAYS[way]
    fresh(path)
    started = time.perf_counter()
    guest.stop()
    guest.migrate(f"file:{path}", capabilities, parameters)
    guest.cont()
    return time.perf_counter() - started


def alternate(repeats: int, ways: Mapping[str, Callable[[], float]]) -> Samples:
    """Each way once a round, in turning order, after one round that does not count."""
    found: Samples = {name: [] for name in ways}
    names = list(ways)
    for number in range(-1, repeats):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            seconds = ways[name]()
            if number >= 0:
                found[name].append(seconds)
    return found


def show(title: str, samples: Samples, unit: float = 1000.0) -> dict[str, Any]:
    """Print a table with the median of the ratios between neighbours; returns it for the results."""
    first = next(iter(samples))
    print(title)
    ratios = {}
    for name, values in samples.items():
        ratios[name] = statistics.median(b / a for a, b in zip(samples[first], values, strict=True))
        listed = " ".join(f"{value * unit:.0f}" for value in values)
        print(f"  {name:<42} {statistics.median(values) * unit:>7.0f} ms   x{ratios[name]:<6.2f} ({listed})")
    sys.stdout.flush()
    return {"name": title, "seconds": samples, "ratio_to_first": ratios}


def pauses(linux: LinuxGuest, folder: Path, repeats: int) -> list[dict[str, Any]]:
    """A Linux guest of 1 GiB with about 150 MB and about 800 MB that are not zero."""
    results, path = [], folder / "pause.mr"
    for size_mib in (60, 720):
        for backend in ("memfd", "default"):
            with QemuProcess(*linux.args(size_mib=size_mib), ram=Ram(GIB, backend)) as guest:
                guest.wait_serial(r"tick 1 ", timeout=600)
                samples = alternate(
                    repeats,
                    {
                        OURS: lambda: our_pause(guest, path),
                        **{way: lambda way=way: qemu_pause(guest, path, way) for way in QEMU_WAYS},
                    },
                )
                our_pause(guest, path)
                with app.open_image(str(path)) as image:
                    data = sum(block.data_pages for block in image.report()) * 4096
            kind = "shared" if backend == "memfd" else "private"
            results.append(show(f"pause, 1 GiB guest with {data / 1e6:.0f} MB of data, {kind} RAM", samples))
    return results


def first_saves(folder: Path, repeats: int) -> list[dict[str, Any]]:
    """The first save of a fresh guest of 2 GiB with shared RAM that has touched 64 MB."""
    image = folder / "image"
    image.write_bytes(boot_image(end=64 * MIB))

    def first(save: Callable[[QemuProcess, Path], float]) -> float:
        with QemuProcess(*boot_from(image), ram=Ram(2 * GIB, "memfd")) as guest:
            guest.wait_serial("C")
            return save(guest, folder / "first.mr")

    ways = {
        OURS: lambda: first(our_pause),
        **{way: lambda way=way: first(lambda guest, path: qemu_pause(guest, path, way)) for way in QEMU_WAYS},
    }
    return [show("pause of the first save, fresh 2 GiB guest with 64 MB of data, shared RAM", alternate(repeats, ways))]


def small_pauses(folder: Path, repeats: int) -> list[dict[str, Any]]:
    """What a pause costs besides RAM: guests of 2 GiB that have touched 1 MB."""
    image, results = folder / "image", []
    image.write_bytes(boot_image(end=2 * MIB))
    for backend in ("memfd", "default"):
        samples: Samples = {"pause": [], "its round over RAM": []}
        with QemuProcess(*boot_from(image), ram=Ram(2 * GIB, backend)) as guest:
            guest.wait_serial("C")
            for number in range(-1, repeats):
                seconds = app.save(
                    lambda: app.open_qemu(str(guest.monitor_path)),
                    str(fresh(folder / "small.mr")),
                    channels=2,
                    experimental_multifd=True,
                ).seconds
                if number >= 0:
                    samples["pause"].append(seconds.pause)
                    samples["its round over RAM"].append(seconds.ram)
        kind = "shared" if backend == "memfd" else "private"
        results.append(show(f"pause of a 2 GiB guest with 1 MB of data, {kind} RAM", samples))
    return results


def qemu_command(size: int, *more: str, backend: str = "") -> list[str]:
    """A command line for a guest saved from QemuProcess."""
    machine = ["-machine", "q35,memory-backend=m" if backend else "q35"]
    memory = ["-object", f"{backend},id=m,size={size}"] if backend else []
    common = ["-nodefaults", "-no-user-config", "-display", "none", "-accel", "tcg", "-serial", "null"]
    return [require_qemu(), *common, *machine, "-m", f"{size}B", *memory, *more]


def total_seconds(run: Callable[[], BootReport]) -> float:
    """Start guests, note how long it took, kill them."""
    report = run()
    for guest in report.guests:
        os.kill(guest.pid, signal.SIGKILL)
        os.waitpid(guest.pid, 0)
    return report.seconds.total


def loads(linux: LinuxGuest, folder: Path, repeats: int) -> list[dict[str, Any]]:
    """Start a guest of 1 GiB with 800 MB of data on shared memory: filled by us, and loaded by QEMU."""
    path = fresh(folder / "load.mr")
    args = linux.args(size_mib=720)
    with QemuProcess(*args, ram=Ram(GIB, "memfd")) as guest:
        guest.wait_serial(r"tick 1 ", timeout=600)
        app.save(lambda: app.open_qemu(str(guest.monitor_path)), str(path), direct_io="off")
    command = qemu_command(GIB, *args, backend="memory-backend-memfd,share=on")

    def start(channels: int, shared: bool) -> float:
        return total_seconds(
            lambda: boot.restore_guest(
                str(path), command, channels=channels, experimental_multifd=channels > 1, shared=shared
            )
        )

    ways = {
        "ours, --shared, 2 channels": lambda: start(2, True),
        "QEMU into memfd, mapped-ram, multifd 2": lambda: start(2, False),
        "QEMU into memfd, mapped-ram": lambda: start(1, False),
    }
    return [show("from command to running, 1 GiB guest with 800 MB of data, shared RAM", alternate(repeats, ways))]


def cold_loads(linux: LinuxGuest, folder: Path, repeats: int) -> list[dict[str, Any]]:
    """QEMU loads a file that is not in the page cache into private RAM: 1 GiB guest with 800 MB of data."""
    path = fresh(folder / "cold.mr")
    args = linux.args(size_mib=720)
    with QemuProcess(*args, ram=Ram(GIB)) as guest:
        guest.wait_serial(r"tick 1 ", timeout=600)
        app.save(lambda: app.open_qemu(str(guest.monitor_path)), str(path))
    command = qemu_command(GIB, *args, backend="memory-backend-ram")

    def start(channels: int, direct: bool) -> float:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        with mock.patch("parallel_fixedram.boot.restore.is_cold", return_value=direct):
            return total_seconds(
                lambda: boot.restore_guest(str(path), command, channels=channels, experimental_multifd=channels > 1)
            )

    ways = {
        "multifd 2, direct-io": lambda: start(2, True),
        "multifd 2": lambda: start(2, False),
        "one channel": lambda: start(1, False),
    }
    return [show("from command to running, cold file, private RAM, loaded by QEMU", alternate(repeats, ways))]


def clones(folder: Path, repeats: int) -> list[dict[str, Any]]:
    """From command to running, guests of 256 MiB and of 4 GiB, one clone and four."""
    image = folder / "image"
    image.write_bytes(boot_image())
    ways: dict[str, Callable[[], float]] = {}
    for size in (256 * MIB, 4 * GIB):
        path = fresh(folder / f"clone-{size}.mr")
        with QemuProcess(*boot_from(image), ram=Ram(size)) as guest:
            guest.wait_serial("C")
            app.save(lambda: app.open_qemu(str(guest.monitor_path)), str(path))
        command = qemu_command(size, *boot_from(image), backend="memory-backend-ram")
        for count in (1, 4):
            ways[f"{size >> 20} MiB, {count} clone(s)"] = lambda path=path, command=command, count=count: (
                _clone_command(path, command, count)
            )
    return [show("clone: the whole command, Python's start included", alternate(repeats, ways))]


def _clone_command(path: Path, command: list[str], count: int) -> float:
    started = time.perf_counter()
    ours = [sys.executable, "-m", "parallel_fixedram", "clone", str(path), "--count", str(count), "--json", "--"]
    done = subprocess.run([*ours, *command], check=True, capture_output=True, text=True)
    seconds = time.perf_counter() - started
    for guest in json.loads(done.stdout)["guests"]:
        os.kill(guest["pid"], signal.SIGKILL)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare pauses, loads and clones with QEMU's own.")
    parser.add_argument("what", nargs="*", default=[], help="pause, first, small, cold, load, clone; default all")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", default=tempfile.gettempdir())
    parser.add_argument("--json", help="where all samples go")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        results: dict[str, Any] = {"host": host_facts(name)}
        linux = linux_guest(folder)
        experiments: dict[str, Callable[[], list[dict[str, Any]]]] = {
            "pause": lambda: pauses(linux, folder, args.repeats),
            "first": lambda: first_saves(folder, args.repeats),
            "small": lambda: small_pauses(folder, args.repeats),
            "cold": lambda: cold_loads(linux, folder, args.repeats),
            "load": lambda: loads(linux, folder, args.repeats),
            "clone": lambda: clones(folder, args.repeats),
        }
        for each in args.what or experiments:
            results[each] = experiments[each]()
    if args.json:
        with open(args.json, "w") as file:
            json.dump(results, file, indent=1)


if __name__ == "__main__":
    main()
