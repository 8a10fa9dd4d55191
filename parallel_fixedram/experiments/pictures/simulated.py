"""What the simulation predicts for a host: compared with measurements, and for a size that was never measured.

Both are called a simulation in the picture itself, not only under it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from parallel_fixedram.experiments.calibrate_simulation import Calibration, calibrated
from parallel_fixedram.experiments.extrapolate import HypotheticalSave, extrapolate, larger
from parallel_fixedram.experiments.metrics import meaning, seconds
from parallel_fixedram.experiments.pictures import drawing, style
from parallel_fixedram.experiments.results import RunSet

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAME = "simulation"
RAM = 1 << 40
CHANNELS = 32
DEVICES = (1, 8)
"""Devices like the one that was measured, in the curves for 1 TiB."""


def draw(run_set: RunSet) -> list[drawing.Picture]:
    """A picture for each series of channels that the simulation could be fitted to.

    Raises:
        NotDrawnError: there is none.
    """
    done, left = calibrated(run_set)
    if not done:
        why = f" ({left[0].series}: {left[0].why})" if left else ""
        raise drawing.NotDrawnError(f"no series of channels that the simulation can be fitted to{why}")
    return [_picture(run_set, each, number) for number, each in enumerate(done, 1)]


def _picture(run_set: RunSet, calibration: Calibration, number: int) -> drawing.Picture:
    drawn = drawing.sheet(2)
    samples = _measured(drawn, drawn.axes[0], run_set, calibration)
    _extrapolated(drawn, drawn.axes[1], calibration)
    title = "Simulation: does it explain what was measured, and what does it say of 1 TiB?"
    name, subject = f"{NAME}-{number}", calibration.series
    return drawing.finish(drawn, run_set, name, title, subject=subject, samples=samples)


def _measured(drawn: drawing.Sheet, axes: Axes, run_set: RunSet, calibration: Calibration) -> list[int]:
    points = calibration.points
    look, guess = style.line_style(0), style.line_style(1)
    x = [point.channels for point in points]
    drawn.legend(axes.plot(x, [point.measured for point in points], **look)[0], "measured")
    drawn.legend(
        axes.plot(x, [point.simulated for point in points], **guess)[0],
        "simulation, fitted to one channel",
    )
    counts = []
    for case in run_set.cases:
        channels = case.parameters.get("channels")
        if case.parameters.get("way") == "ours" and case.id.replace(f" channels={channels}", "") == calibration.series:
            times = seconds(case, calibration.metric)
            style.dots(axes, [float(channels or 1)] * len(times), times, look["color"])
            counts.append(len(times))
    axes.set_xscale("log", base=2)
    style.plain_numbers(axes, "x", x)
    axes.set_ylim(0, axes.get_ylim()[1] * 1.05)
    axes.set_xlabel("channels (worker processes)")
    axes.set_ylabel(f"time {meaning(calibration.metric)}, s")
    axes.set_title("measured against the simulation", fontsize=9.5)
    style.grid(axes)
    return counts


def _extrapolated(drawn: drawing.Sheet, axes: Axes, calibration: Calibration) -> None:
    for number, devices in enumerate(DEVICES if calibration.direct else DEVICES[:1]):
        device, host = larger(calibration.device, calibration.host, devices=devices, processors=CHANNELS)
        target = HypotheticalSave(ram=RAM, channels=CHANNELS, direct=calibration.direct, device=device, host=host)
        points = extrapolate(target)
        look = style.line_style(2 + number)
        x, y = [point.channels for point in points], [point.simulated.seconds for point in points]
        count = "one device" if devices == 1 else f"{devices} devices"
        where = f"to {count} like the one measured" if calibration.direct else "into the page cache"
        text = f"simulation of 1 TiB {where}, {CHANNELS} processors"
        drawn.legend(axes.plot(x, y, **look)[0], text)
    axes.set_xscale("log", base=2)
    style.plain_numbers(axes, "x", [1, 2, 4, 8, 16, 32])
    style.log_y(axes)
    axes.set_xlabel("channels (worker processes)")
    axes.set_ylabel("simulated time, s")
    axes.set_title("SIMULATION, never measured: 1 TiB of data", fontsize=9.5)
    style.grid(axes)
