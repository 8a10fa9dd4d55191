"""A save that holds its file against a copy of RAM of the same instant: what is wrong does not get its name."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from support.observers import Heard
from support.pictures import PAGE, content, draw
from support.saving import save, several
from support.sources import ScriptedGuest
from support.watched import require_userfaultfd

from parallel_fixedram.core.errors import HostError, InstantDiffers
from parallel_fixedram.core.observer import SILENT
from parallel_fixedram.core.save_options import CaptureMode
from parallel_fixedram.engine.pages.ledger import Ledger
from parallel_fixedram.image.image import open_image
from parallel_fixedram.image.instant_copy import InstantCopy
from parallel_fixedram.image.verify import verify
from parallel_fixedram.machines.builtin.process import GuestProcess
from parallel_fixedram.machines.builtin.spec import GuestSpec

RAM = {"m": "AB0-CD0A" * 40, "rom": "Z0-Z"}


@pytest.mark.parametrize("mode", [CaptureMode.SNAPSHOT, CaptureMode.COMPARE, CaptureMode.ROUNDS, CaptureMode.STOPPED])
def test_what_is_right_gets_its_name(target: str, mode: CaptureMode) -> None:
    if mode is CaptureMode.SNAPSHOT:
        require_userfaultfd()
    heard = Heard()
    with GuestProcess(GuestSpec.parse("hot,size=8MiB")) as guest:
        guest.start()
        report = save(guest, target, several(channels=2, mode=mode, check_instant=True), observer=heard)
    assert report.choice.capture == mode
    assert [each.name for each in report.phases][-3:] == ["finish", "check", "publish"]
    assert 0 < report.seconds.copy < report.seconds.pause
    assert "copy" in dict(heard.phases)
    with open_image(target) as image:
        assert verify(image).ok


def test_what_was_changed_before_the_copy_is_found(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = InstantCopy.take

    def after_a_change(self: InstantCopy, *args: Any) -> None:
        os.pwrite(guest.fds["m"], content("XX"), 4 * PAGE)
        os.pwrite(guest.fds["rom"], content("0"), 0)
        real(self, *args)

    monkeypatch.setattr(InstantCopy, "take", after_a_change)
    with (
        closing(ScriptedGuest(RAM)) as guest,
        pytest.raises(InstantDiffers, match=r"^3 pages .* stood still: block 'm' pages 4-5 at 0x") as caught,
    ):
        save(guest, target, several(check_instant=True))
    assert caught.value.pages == 3
    assert caught.value.exit_code == 1
    assert os.listdir(Path(target).parent) == []


def test_nothing_of_an_earlier_copy_is_left(target: str) -> None:
    """An instant that somebody has torn is copied again, when less may be there."""
    now = {"m": "-" * 300 + "0A" * 10, "rom": "0--Y"}
    with closing(ScriptedGuest(RAM)) as guest:
        blocks = guest.guest_blocks()
        ledger = Ledger([each.block for each in blocks])
        ledger.map_data(blocks)
        with InstantCopy(blocks, ledger.data, 2) as copy:
            copy.take(SILENT)
            for name, picture in now.items():
                draw(guest.fds[name], picture)
            copy.take(SILENT)
            save(guest, target)
            with open_image(target) as image:
                copy.check(image, SILENT)


def test_memory_for_the_copy_is_asked_about_first(target: str, leave_memory: Callable[[int], None]) -> None:
    leave_memory(1 << 16)
    with (
        closing(ScriptedGuest(RAM)) as guest,
        pytest.raises(
            HostError,
            match=r"copy of the guest's RAM takes .* only 64\.0 KiB of memory is available to this control group$",
        ),
    ):
        save(guest, target, several(check_instant=True))
    assert guest.calls == []
    assert os.listdir(Path(target).parent) == []
