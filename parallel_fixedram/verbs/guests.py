"""``list_guests``, ``stop_guests``: guests that ``restore`` and ``clone`` have started, and that live on."""

from __future__ import annotations

from collections.abc import Sequence

from parallel_fixedram.boot.living import Survey, stop
from parallel_fixedram.core.errors import RequestError
from parallel_fixedram.core.reports.guests import GuestsReport


def list_guests() -> GuestsReport:
    """The live guests of this user, wherever their run folders are; run folders of ended guests are removed.

    Raises:
        HostError: the system does not tell which processes are alive.
    """
    with Survey() as survey:
        return GuestsReport(
            guests=tuple(guest.report() for guest in survey.guests),
            ended=tuple(survey.ended),
            stopped=(),
            notes=(*_busy(survey), *survey.notes),
        )


def stop_guests(names: Sequence[str] = (), *, everything: bool = False) -> GuestsReport:
    """End guests of this user: by their monitor's ``quit``, if necessary by SIGTERM, and finally by SIGKILL.

    Args:
        names: ``NAME/N`` for one guest, ``NAME`` for all that one command has started, or the path of a run folder.
        everything: whether to end all guests.

    Raises:
        RequestError: neither or both are given, or a name refers to no guest. None was ended.
        MachineError: a command is still working with one, and none was ended; or one does not end.
        HostError: the system does not tell which processes are alive, or a signal cannot be sent.
    """
    if bool(names) == everything:
        raise RequestError("names of guests are needed, or --all, but not both")
    with Survey(names) as survey:
        guests, ended = (survey.guests, survey.ended) if everything else survey.chosen(names)
        return GuestsReport(
            guests=(),
            ended=tuple(ended),
            stopped=tuple(stop(guests)),
            notes=(*(_busy(survey) if everything else ()), *survey.notes),
        )


def _busy(survey: Survey) -> list[str]:
    return [f"a command is still working with {name!r}" for name in survey.busy]
