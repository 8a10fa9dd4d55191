"""The ways to capture an instant, by name. A new one is a module next to these, and a line here."""

from __future__ import annotations

from collections.abc import Mapping

from parallel_fixedram.core.save_options import CaptureMode
from parallel_fixedram.engine.capture.capture import MakeCapture
from parallel_fixedram.engine.capture.compare import Compare
from parallel_fixedram.engine.capture.rounds import DirtyRounds
from parallel_fixedram.engine.capture.stopped import Stopped
from parallel_fixedram.engine.capture.write_protect import WriteProtect

WAYS: Mapping[CaptureMode, MakeCapture] = {
    CaptureMode.COMPARE: Compare,
    CaptureMode.ROUNDS: DirtyRounds,
    CaptureMode.SNAPSHOT: WriteProtect,
    CaptureMode.STOPPED: Stopped,
}
