"""``bench simulate``: the simulation compared with measurements, and what it says of machines nobody measured."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from parallel_fixedram.cli import common, output
from parallel_fixedram.cli.folding import print_folded
from parallel_fixedram.core.errors import RequestError
from parallel_fixedram.core.schemas import stamped
from parallel_fixedram.core.units import format_rate, format_size

if TYPE_CHECKING:
    from parallel_fixedram.experiments.calibrate_simulation import Calibration, NotSimulated
    from parallel_fixedram.experiments.extrapolate import Extrapolated, HypotheticalSave
    from parallel_fixedram.experiments.results import RunSet

ASSUMED_RATE = 2 * 10**9
ASSUMED_CALL_SECONDS = 100e-6
ASSUMED_SCAN_RATE = 5 * 10**9
ASSUMED_COPY_RATE = 2 * 10**9
"""Into the page cache of a new file."""

_EXAMPLES = """  parallel-fixedram bench simulate --ram 1TiB --channels 32 --devices 8
  parallel-fixedram bench simulate --ram 128GiB --dirty 0.05 \\
      --device-rate 3GiB --call-seconds 50e-6
with results of yours to fit it to:
  parallel-fixedram bench simulate channels.json --ram 1TiB"""


def register(subparsers: common.Subparsers[Any]) -> None:
    """Add the sub-verb to ``bench``."""
    parser = common.add_verb(
        subparsers,
        "simulate",
        summary="how a simulated device copes with channels, and with RAM that nobody has",
        about="Simulate a save, event by event. With a file of results the parameters are fitted to one channel and\n"
        "fio, and what they predict for more channels is compared with the samples. Never a measurement; it says so.",
        examples=_EXAMPLES,
    )
    parser.add_argument("result", nargs="?", metavar="RESULT.json", help="results to fit the parameters to")
    parser.add_argument(
        "--ram", type=_size, default=1 << 40, metavar="SIZE", help="RAM of the guest, all of it data (default 1TiB)"
    )
    parser.add_argument(
        "--dirty",
        type=_share,
        default=1.0,
        metavar="SHARE",
        help="share of its pages that is to be written, 0.000001 to 1 (default 1)",
    )
    parser.add_argument(
        "--channels",
        type=_count,
        default=32,
        metavar="N",
        help="simulate 1, 2, 4 and so on, up to N channels (default 32)",
    )
    parser.add_argument(
        "--devices", type=_count, default=1, metavar="N", help="devices that the file is striped over (default 1)"
    )
    parser.add_argument(
        "--processors", type=_count, metavar="N", help="processors of the host (default: one a channel)"
    )
    parser.add_argument(
        "--direct-io",
        choices=["on", "off"],
        default="on",
        help="on (default): bypass the page cache; off: write into it, where writers of one file exclude each other",
    )
    parser.add_argument("--device-rate", type=_size, metavar="SIZE", help="bytes that one device writes in a second")
    parser.add_argument(
        "--call-seconds", type=_seconds, metavar="S", help="seconds that a request takes besides its bytes"
    )
    parser.add_argument(
        "--queue-depth", type=_count, metavar="N", help="requests that a device works on at the same time (default 32)"
    )
    parser.add_argument("--scan-rate", type=_size, metavar="SIZE", help="bytes that a worker looks at in a second")
    parser.set_defaults(run=run)


def _size(text: str) -> int:
    if not (size := common.size(text)):
        raise argparse.ArgumentTypeError(f"{text!r}: expected more than nothing")
    return size


def _count(text: str) -> int:
    value = int(text) if text.isascii() and text.isdigit() and len(text) < 6 else 0
    if not 1 <= value <= 1024:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number from 1 to 1024")
    return value


_share = common.number("a number from 0.000001 to 1", lambda value: 1e-6 <= value <= 1)
_seconds = common.number("a number of seconds", lambda value: 0 <= value < math.inf)


def run(args: argparse.Namespace) -> int:
    """Carry out ``simulate``; returns the exit code."""
    from parallel_fixedram.experiments.calibrate_simulation import calibrated
    from parallel_fixedram.experiments.extrapolate import extrapolate
    from parallel_fixedram.experiments.results import load

    run_set: RunSet | None = load(args.result) if args.result else None
    done, left = calibrated(run_set) if run_set else ([], [])
    target, origin = _target(args, done)
    points = extrapolate(target)
    if args.json:
        output.print_json(stamped("bench_simulate", _json(args, done, left, target, origin, points)))
        return 0
    if run_set:
        _print_calibrations(done, left)
    _print_extrapolation(target, origin, points)
    return 0


def _target(args: argparse.Namespace, done: Sequence[Calibration]) -> tuple[HypotheticalSave, str]:
    """What to simulate, and where its parameters come from.

    Raises:
        RequestError: results were given, but none that the parameters could be fitted to.
    """
    from dataclasses import replace

    from parallel_fixedram.experiments.extrapolate import HypotheticalSave, larger
    from parallel_fixedram.experiments.simulate import Device, Host

    direct = args.direct_io == "on"
    fitted = next((each for each in done if each.direct == direct), None)
    if fitted:
        device, host, origin = fitted.device, fitted.host, f"fitted to {fitted.series}"
    elif args.result:
        kind = "direct" if direct else "buffered"
        raise RequestError(
            f"{args.result!r} has no {kind} series of channels that the simulation can be fitted to",
            hint="leave out the file to simulate with assumed parameters, or choose the other --direct-io",
        )
    else:
        device = Device(call_seconds=ASSUMED_CALL_SECONDS, byte_seconds=1 / ASSUMED_RATE) if direct else Device()
        copy = 0.0 if direct else 1 / ASSUMED_COPY_RATE
        host = Host(processors=1, scan_byte_seconds=1 / ASSUMED_SCAN_RATE, copy_byte_seconds=copy, lock=not direct)
        origin = "assumed, not fitted to anything"
    changes = {"byte_seconds": 1 / args.device_rate if args.device_rate else None, "call_seconds": args.call_seconds}
    changes["queue_depth"] = args.queue_depth
    given = {name: value for name, value in changes.items() if value is not None}
    device = replace(device, **given)
    if args.scan_rate:
        host = replace(host, scan_byte_seconds=1 / args.scan_rate)
    if given or args.scan_rate:
        origin += ", changed by options"
    device, host = larger(device, host, devices=args.devices, processors=args.processors or args.channels)
    target = HypotheticalSave(
        ram=args.ram, channels=args.channels, direct=direct, device=device, host=host, dirty=args.dirty
    )
    return target, origin


def _json(
    args: argparse.Namespace,
    done: Sequence[Calibration],
    left: Sequence[NotSimulated],
    target: HypotheticalSave,
    origin: str,
    points: Sequence[Extrapolated],
) -> dict[str, Any]:
    return {
        "verb": "bench simulate",
        "simulation": True,
        "result": args.result,
        "calibrations": [each.to_json() for each in done],
        "not_simulated": [{"series": each.series, "why": each.why} for each in left],
        "parameters": origin,
        "target": target.to_json(),
        "points": [each.to_json() for each in points],
    }


def _print_calibrations(done: Sequence[Calibration], left: Sequence[NotSimulated]) -> None:
    from parallel_fixedram.experiments.metrics import meaning

    for each in done:
        print_folded(f"measured against simulated, time {meaning(each.metric)}: {each.series}")
        for point in each.points:
            what = "fitted" if point.fitted else f"error {point.error:+.1%}"
            figures = f"measured {point.measured * 1000:.1f} ms, simulated {point.simulated * 1000:.1f} ms"
            print_folded(f"  {point.channels:3} channels: {figures}, {what}; bottleneck: {point.bottleneck}")
        for note in each.notes:
            print_folded(f"  note: {note}")
    for other in left:
        print_folded(f"not simulated: {other.series}: {other.why}")
    print()


def _print_extrapolation(target: HypotheticalSave, origin: str, points: Sequence[Extrapolated]) -> None:
    device, host = target.device, target.host
    print_folded("SIMULATION, not a measurement: nobody has run this")
    dirty = "" if target.dirty == 1 else f", {target.dirty:g} of its pages dirty at random"
    print_folded(f"  save of {format_size(target.ram)}{dirty}, {'direct' if target.direct else 'into the page cache'}")
    rate = format_rate(1, device.byte_seconds) if device.byte_seconds else "any rate"
    per_byte = host.scan_byte_seconds + host.copy_byte_seconds + host.digest_byte_seconds
    worker = format_rate(1, per_byte) if per_byte else "any rate"
    print_folded(
        f"  devices: {device.count}, {rate} each, {device.call_seconds * 1e6:.1f} us a request, "
        f"queue of {device.queue_depth}; processors: {host.processors}, {worker} each"
        + ("; one writer at a time" if host.lock else "")
    )
    print_folded(f"  parameters: {origin}")
    for point in points:
        time = point.simulated.seconds
        rate = format_rate(round(target.ram * target.dirty), time)
        print_folded(f"  {point.channels:4} channels: {time:.3g} s, {rate}; bottleneck: {point.simulated.bottleneck}")
    if any(point.share < 1 for point in points):
        print_folded("  a part of the save was simulated call by call, and the rest taken to be like it")
    last = points[-1]
    print_folded(f"with {last.channels} channels the simulated save would wait for: {last.simulated.bottleneck}")
