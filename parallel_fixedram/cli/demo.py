"""``demo``: the whole story on the built-in guest, in a few seconds."""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import shutil
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from parallel_fixedram.cli import common, output
from parallel_fixedram.cli.folding import print_folded
from parallel_fixedram.cli.progress import shown
from parallel_fixedram.core.errors import CapabilityError, ContentsDiffer, HostError
from parallel_fixedram.core.schemas import stamped
from parallel_fixedram.core.units import format_rate, format_size

if TYPE_CHECKING:
    from parallel_fixedram.core.reports.save import SaveReport
    from parallel_fixedram.verbs.open import GuestProcess

CHANNELS = (1, 2, 4)
LIVE_ROUNDS = 6
_FILES = 1.75
"""Most space that files take at a time, as a part of the guest's RAM, of which half is zero."""

_EXAMPLES = """  parallel-fixedram demo
  parallel-fixedram demo --size 256MiB --folder /var/tmp"""


def register(subparsers: common.Subparsers[Any]) -> None:
    """Add the verb to the command line."""
    parser = common.add_verb(
        subparsers,
        "demo",
        summary="the whole story on the built-in guest: save, verify, restore, compare",
        about="A guest process dirties shared RAM; its RAM is saved with 1, 2 and 4 channels, verified, restored and\n"
        "compared byte by byte; then it is saved while it runs. Leaves nothing behind.",
        examples=_EXAMPLES,
    )
    parser.add_argument("--size", type=common.size, default=common.size("1GiB"), help="RAM of the guest (default 1GiB)")
    parser.add_argument("--folder", help="where files are written (default: where temporary files go)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Carry out the verb; returns the exit code."""
    from parallel_fixedram.core.schemas import to_json
    from parallel_fixedram.verbs.open import open_guest
    from parallel_fixedram.verbs.temporary import temporary_folder

    def say(line: str) -> None:
        if not args.json:
            print_folded(line)
            sys.stdout.flush()

    if not os.path.exists("/proc/self/fd"):
        raise HostError("the demo reaches memory through /proc, which is not mounted here")
    started = time.monotonic()
    with temporary_folder(args.folder) as folder:
        _check_room(folder, args.size)
        refusal = _refusal(os.path.join(folder, "refused"))
        say(f"1. fixed-ram with multifd: refused, as by QEMU: {refusal!r}")
        with shown() as progress:
            guest = open_guest(f"hot,size={args.size},fraction=0.5,seed=1,rate=512MiB", observer=progress)
        with guest:
            guest.run(200)
            say(f"2. guest {guest.pid} has {format_size(args.size)} of RAM and dirtied half of it; saved to {folder}")
            say(f"   {'channels':>8} {'time':>7} {'written':>10} {'data pages':>10} {'zero pages':>10} {'on disk':>7}")
            saves = []
            for channels in CHANNELS:
                saves.append(_save_and_restore(guest, folder, channels))
                say(_row(saves[-1]))
            say(
                "   each file: digests checked, restored; the guest's and the restored RAM compared byte by byte: equal"
            )
            live = _save_live(guest, folder)
        for line in _live_lines(live):
            say(line)
        say(f"done in {time.monotonic() - started:.1f} s")
    if args.json:
        told = {
            "verb": "demo",
            "refusal": refusal,
            "saves": [to_json(report) for report in saves],
            "live": to_json(live),
            "sequential_bytes": _sequential_bytes(live),
        }
        output.print_json(stamped("demo", told))
    return 0


def _refusal(path: str) -> str:
    """What the gate says to two channels without the flag."""
    from parallel_fixedram.core.save_options import Gate
    from parallel_fixedram.verbs.save import save

    try:
        save(_no_machine, path, gate=Gate(channels=2))
    except CapabilityError as error:
        return error.message
    raise AssertionError("the gate let two channels pass")


def _no_machine() -> GuestProcess:
    raise AssertionError("the gate comes before the machine")


def _save_and_restore(guest: GuestProcess, folder: str, channels: int) -> SaveReport:
    """Save, restore, verify, and compare both RAMs with the file; returns what the save reported."""
    from parallel_fixedram.core.save_options import Gate, Publishing
    from parallel_fixedram.verbs.restore import restore
    from parallel_fixedram.verbs.save import save
    from parallel_fixedram.verbs.verify import verify

    path = os.path.join(folder, "guest.mr")
    gate = Gate(channels=channels, experimental_multifd=True)
    report = save(guest, path, gate=gate, publishing=Publishing(overwrite=True))
    block = report.blocks[0]
    with _memory(block.used_length) as copy:
        restore(path, {block.idstr: copy}, gate=gate)
        for what, ram in (("the guest's RAM", f"/proc/self/fd/{guest.memfd}"), ("what was restored", copy)):
            if not verify(path, ram={block.idstr: ram}).ok:
                raise ContentsDiffer(f"{path!r} differs from {what}")
    return report


@contextlib.contextmanager
def _memory(size: int) -> Iterator[str]:
    """The path of shared memory of ``size`` bytes; not in /dev/shm, which containers keep small."""
    fd = os.memfd_create("restored", os.MFD_CLOEXEC)
    try:
        os.ftruncate(fd, size)
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)


def _check_room(folder: str, size: int) -> None:
    """Ask for the room of the files of a guest of ``size`` bytes: at the most, an old, a new and a live one.

    Raises:
        HostError: there is less.
    """
    needed, free = round(_FILES * size), shutil.disk_usage(folder).free
    if free < needed:
        raise HostError(
            f"{folder!r} has {format_size(free)} free, the demo's files take up to {format_size(needed)}",
            errno=errno.ENOSPC,
            hint="--folder names another place, --size a smaller guest",
        )


def _save_live(guest: GuestProcess, folder: str) -> SaveReport:
    """Save while the guest goes on dirtying its RAM."""
    from parallel_fixedram.core.save_options import CaptureMode, Capturing, Gate
    from parallel_fixedram.verbs.save import save
    from parallel_fixedram.verbs.verify import verify

    guest.start()
    path = os.path.join(folder, "live.mr")
    report = save(
        guest,
        path,
        gate=Gate(channels=2, experimental_multifd=True),
        capture=Capturing(mode=CaptureMode.ROUNDS, max_rounds=LIVE_ROUNDS),
    )
    guest.pause()
    if not verify(path).ok:
        raise ContentsDiffer(f"{path!r} is not what it says it is")
    return report


def _row(report: SaveReport) -> str:
    block, seconds = report.blocks[0], report.seconds.total
    rate = format_rate(report.bytes.written, seconds)
    return (
        f"   {report.channels:>8} {seconds:>5.2f} s {rate:>10} {block.data_pages:>10} {block.zero_pages:>10} "
        f"{format_size(report.bytes.allocated):>7}"
    )


def _sequential_bytes(report: SaveReport) -> int:
    """What the same rounds would have taken in a stream that appends every page again."""
    from parallel_fixedram.core.sequential import stream_bytes

    return stream_bytes(report.rounds, report.blocks[0].page_size)[-1]


def _live_lines(report: SaveReport) -> tuple[str, str]:
    rounds = ", ".join(str(each.dirty_pages) for each in report.rounds)
    return (
        f"3. saved again while it ran and dirtied: {len(report.rounds)} rounds of {rounds} dirty pages, "
        f"stopped for {report.seconds.pause * 1000:.1f} ms",
        f"   on disk {format_size(report.bytes.allocated)}, however often a page is dirtied; "
        f"a sequential stream: {format_size(_sequential_bytes(report))}",
    )
