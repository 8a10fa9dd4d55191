"""Run folders of ended guests in a folder, and links to run folders that are gone.

This does for one folder what ``guests`` does for the usual places: it looks at those in it that have the name of a run
folder, and those that a link in the usual places leads to (``--run-dir``). Logs of QEMUs that failed were kept to be
read, and stay.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace

from parallel_fixedram.boot.run_folder import PREFIX, FleetFolder, RunFolder, is_ours, places
from parallel_fixedram.core.errors import HostError
from parallel_fixedram.core.reports.clean import Kind, Leftover
from parallel_fixedram.host import linux
from parallel_fixedram.host.files.left_file import holder_in
from parallel_fixedram.host.processes.identity import Whereabouts


def left_folders(path: str, *, remove: bool) -> Iterator[Leftover]:
    """A finding for each; only what belongs to this user is examined.

    Args:
        path: the folder.
        remove: whether to remove those that no guest and no command uses.

    Raises:
        OSError: the folder cannot be read.
    """
    for each in _ours_in(path):
        if os.path.islink(each) and not os.path.lexists(os.path.realpath(each)):
            yield _link(each, remove=remove)
    for fleet in _fleets(path):
        if found := _fleet(fleet, os.path.join(path, os.path.basename(fleet.path)), remove=remove):
            yield found


def _fleets(path: str) -> Iterator[FleetFolder]:
    """Possible run folders, each once."""
    real = os.path.realpath(path)
    found = dict.fromkeys(_ours_in(real), "")
    links = [each for place in places() for each in _ours_in(place) if os.path.islink(each)]
    found |= {target: link for link in links if os.path.dirname(target := os.path.realpath(link)) == real}
    for each, link in found.items():
        if os.path.isdir(each) and not os.path.islink(each) and is_ours(each):
            yield FleetFolder(each, os.path.basename(link or each).removeprefix(PREFIX), link=link)


def _ours_in(path: str) -> list[str]:
    """Everything in a folder that has the name of a run folder and belongs to this user."""
    found = [os.path.join(path, name) for name in sorted(os.listdir(path)) if name.startswith(PREFIX)]
    return [each for each in found if is_ours(each, follow=False)]


def _link(path: str, *, remove: bool) -> Leftover:
    found = Leftover(
        path=path, kind=Kind.LINK, what="a link to a run folder that is gone", held=False, removed=False, why_not=""
    )
    if not remove:
        return found
    try:
        os.unlink(path)
    except OSError as error:
        return replace(found, why_not=HostError.from_os("cannot be removed", error).message)
    return replace(found, removed=True)


def _fleet(fleet: FleetFolder, shown: str, *, remove: bool) -> Leftover | None:
    """The finding for a run folder; None if it is something else, or has only logs that were kept."""
    if not fleet.each():
        return None
    found = Leftover(path=shown, kind=Kind.RUN_FOLDER, what="a run folder", held=False, removed=False, why_not="")
    try:
        if not fleet.look():
            return replace(found, held=True, why_not="a command is working with it")
        try:
            return _looked_into(fleet, found, remove=remove)
        finally:
            fleet.let_go()
    except HostError as error:
        return replace(found, why_not=error.message)
    except OSError as error:
        return replace(found, why_not=HostError.from_os("cannot examine it", error).message)


def _looked_into(fleet: FleetFolder, found: Leftover, *, remove: bool) -> Leftover | None:
    folders = [(number, folder) for number, folder in fleet.each() if os.path.isdir(folder.path)]
    ended = [(number, folder) for number, folder in folders if _is_of_a_guest(folder)]
    if not ended:
        return None
    found = replace(found, what=f"a run folder; {'; '.join(_whose(fleet, *each) for each in ended)}")
    for _, folder in ended:
        if holder := _living(folder):
            return replace(found, held=True, why_not=holder)
    if any(_is_elsewhere(folder) for _, folder in ended):
        return replace(found, why_not="its guest was started in another pid namespace: run guests there")
    if not remove:
        return found
    for _, folder in ended:
        folder.clear()
    fleet.remove()
    if os.path.lexists(fleet.path):
        return replace(found, why_not="it contains more than a guest leaves, such as a log that was kept")
    return replace(found, removed=True)


def _is_of_a_guest(folder: RunFolder) -> bool:
    """Whether there is more than a log."""
    return folder.record() is not None or os.path.lexists(folder.socket)


def _whose(fleet: FleetFolder, number: int, folder: RunFolder) -> str:
    record = folder.record()
    name = f"guest {fleet.name}/{number}"
    return f"{name}, process {record.process.pid}, from {record.file!r}" if record else f"{name}, which never ran"


def _living(folder: RunFolder) -> str:
    """Which process uses it; empty if none does.

    Raises:
        HostError: it cannot be told.
        OSError: the folder cannot be read.
    """
    if (record := folder.record()) and isinstance(pidfd := record.process.reach(), int):
        linux.close(pidfd)
        return f"the guest is running, as process {record.process.pid}"
    return holder_in(folder.path)  # such as a QEMU that was not handed over, which has its log open


def _is_elsewhere(folder: RunFolder) -> bool:
    record = folder.record()
    return record is not None and record.process.reach() is Whereabouts.ELSEWHERE
