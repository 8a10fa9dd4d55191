"""What a save needs of a host, a folder and a QEMU: a finding each, with what to do about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

from parallel_fixedram.core.errors import FixedRamError, HostError


class Verdict(StrEnum):
    """How a thing was found to be."""

    OK = "ok"
    ABSENT = "absent"
    """A save does without it, and works in another way."""
    NOISY = "noisy"
    """It makes a measurement slower or less sure; never said of what a save needs."""
    REFUSED = "refused"
    """A save is refused for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at."""

    what: str
    verdict: Verdict
    detail: str
    how: str = ""
    """How to get it; empty where it is there, or cannot be got."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """Findings about one thing."""

    name: str
    findings: tuple[Finding, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DoctorReport:
    """What a save needs, and what of it is there."""

    verb: ClassVar[str] = "doctor"
    schema: ClassVar[str] = "doctor"

    folder: str
    qmp: str
    """The QEMU's socket as it was given; empty where only host and folder were looked at."""
    ok: bool
    """Whether nothing is refused."""
    capture: str
    """What ``--capture auto`` would choose for that guest, or for one of this user under TCG; empty if none works."""
    sections: tuple[Section, ...]


def found(what: str, detail: str) -> Finding:
    """A thing that is as it should be."""
    return Finding(what=what, verdict=Verdict.OK, detail=detail)


def missed(what: str, error: FixedRamError, *, verdict: Verdict = Verdict.REFUSED, how: str = "") -> Finding:
    """A thing that is not as it should be, with the error that says so.

    Args:
        what: the thing.
        error: why it is not.
        verdict: what that means for a save.
        how: how to get it, where the error has no hint.
    """
    return Finding(what=what, verdict=verdict, detail=error.message, how=error.hint or how)


def tried(what: str, ask: Callable[[], str], *, otherwise: Verdict = Verdict.REFUSED, how: str = "") -> Finding:
    """The finding of a trial: ``ask`` says what is there, or fails as a save would; the rest as of ``missed``."""
    try:
        return found(what, ask())
    except FixedRamError as error:
        return missed(what, error, verdict=otherwise, how=how)
    except OSError as error:  # such as a file of /proc or /sys that is not there
        return missed(what, HostError.from_any("cannot be seen", error), verdict=otherwise, how=how)
