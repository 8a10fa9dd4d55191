"""The built-in guest is captured by the same engine; what its RAM is after so many steps, its twin knows."""

from __future__ import annotations

import pytest
from support.captured_ram import Capture
from support.examples import some_of
from support.watched import require_userfaultfd

from parallel_fixedram.core.protocols import PageSource
from parallel_fixedram.core.ramblock import RAMBlock
from parallel_fixedram.core.shards import plan_shards
from parallel_fixedram.engine.workers.pool import WorkerPool
from parallel_fixedram.host.memory.userfaultfd import Userfaultfd
from parallel_fixedram.machines.builtin.process import GuestProcess
from parallel_fixedram.machines.builtin.spec import GuestSpec
from parallel_fixedram.machines.builtin.workload import render


class Builtin:
    """Its RAM as a Capture wants it."""

    def __init__(self, guest: GuestProcess) -> None:
        [block] = guest.guest_blocks()
        self._guest = guest
        self.userfaultfd: Userfaultfd
        self.userfaultfd, address = guest.userfaultfd()
        self.userfaultfd.enable()
        self.blocks: list[RAMBlock] = [block.block]
        self.sources: list[PageSource] = [block.source]
        self.addresses: list[int | None] = [address]

    def contents(self) -> list[bytes]:
        return [render(self._guest.spec, self._guest.steps).tobytes()]


@pytest.mark.parametrize(
    "text", some_of(["hot,size=2MiB", "dense,size=3MiB,seed=3", "random,size=10MiB,seed=4,fraction=0.2"], 3)
)
def test_a_guest_that_never_rests_is_saved_as_it_was_at_one_step(text: str) -> None:
    require_userfaultfd()
    with GuestProcess(GuestSpec.parse(text)) as guest:
        guest.start()
        with Capture(Builtin(guest), slots=16) as capture:
            capture.protect()
            guest.pause()
            capture.fix()
            guest.resume()
            capture.snapshot.add_noted()
            with WorkerPool([capture.snapshot.job], 2) as pool:
                pool.run(0, plan_shards(capture.ledger.data, workers=2))
            capture.finish()
        at_t = guest.steps
        guest.pause()
        assert guest.steps > at_t
