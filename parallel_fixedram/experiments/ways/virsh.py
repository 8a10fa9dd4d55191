"""``virsh save``, which ends a domain, and ``virsh restore``, which brings it back.

The domain stands still from the beginning of a save on. virsh syncs nothing: the total of a save includes an fdatasync.
What a run needs besides what it is about is not timed: a saved domain is restored, so that the next run finds it.
"""

from __future__ import annotations

import time

from parallel_fixedram.core.save_options import Gate
from parallel_fixedram.experiments.libvirt_guest import LibvirtGuest, virsh, why_no_libvirt
from parallel_fixedram.experiments.results import Bytes, Seconds
from parallel_fixedram.experiments.ways.way import Measured, Run, file_bytes, sync_file
from parallel_fixedram.verbs.open import open_libvirt
from parallel_fixedram.verbs.save import save
from parallel_fixedram.verbs.verify import verify

OURS = "ours"
"""The image format of a domain that we have saved; libvirt's own are called as libvirt calls them."""


class VirshSave:
    """One image (Way)."""

    def why_missing(self) -> str | None:
        """There may be no libvirt (Way.why_missing)."""
        return why_no_libvirt()

    def run(self, run: Run) -> Measured:
        """Save once, and bring the domain back (Way.run)."""
        started = time.perf_counter()
        _save(run)
        saved = time.perf_counter()
        sync_file(run.path)
        ended = time.perf_counter()
        virsh("restore", run.path)
        length, allocated = file_bytes(run.path)
        return Measured(
            seconds=Seconds(total=ended - started, last_write=saved - started, pause=saved - started),
            bytes=Bytes(ram=run.source.size, data=run.source.data_bytes, file=length, allocated=allocated),
        )

    def verify(self, run: Run) -> str:
        """The domain runs from it; a sparse image can be read (Way.verify)."""
        _require_running(run)
        if run.case.image_format == "sparse" and not (found := verify(run.path, quick=True)).ok:
            raise run.wrong(f"{found.differences[0]}")
        return "loaded"


class VirshRestore:
    """From an image to a domain that runs (Way)."""

    def why_missing(self) -> str | None:
        """There may be no libvirt (Way.why_missing)."""
        return why_no_libvirt()

    def run(self, run: Run) -> Measured:
        """Save, which is not timed, and restore (Way.run)."""
        if run.case.image_format == OURS:
            domain = _domain(run)
            gate = Gate(channels=run.case.channels, experimental_multifd=True)
            save(lambda: open_libvirt(domain.name, stop=True), run.path, gate=gate)
        else:
            _save(run)
        sync_file(run.path)
        started = time.perf_counter()
        virsh("restore", run.path, *_options(run))
        seconds = time.perf_counter() - started
        length, allocated = file_bytes(run.path)
        if run.case.direct_io == "on":
            # QEMU 10.0 goes on with the direct-io that it was restored with, and dies of a sparse save without it
            virsh("save", _domain(run).name, run.path, "--image-format", "raw")
            virsh("restore", run.path)
        return Measured(
            seconds=Seconds(total=seconds),
            bytes=Bytes(ram=run.source.size, data=run.source.data_bytes, file=length, allocated=allocated),
        )

    def verify(self, run: Run) -> str:
        """The domain runs (Way.verify)."""
        _require_running(run)
        return "loaded"


def _domain(run: Run) -> LibvirtGuest:
    assert run.source.domain is not None, "the scenario's check comes first"
    return run.source.domain


def _save(run: Run) -> None:
    virsh("save", _domain(run).name, run.path, "--image-format", str(run.case.image_format), *_options(run))


def _options(run: Run) -> list[str]:
    channels = run.case.channels or 1
    parallel = ["--parallel-channels", str(channels)] if channels > 1 else []
    return [*parallel, *(["--bypass-cache"] if run.case.direct_io == "on" else [])]


def _require_running(run: Run) -> None:
    if (state := _domain(run).state()) != "running":
        raise run.wrong(f"the domain is {state!r}")
