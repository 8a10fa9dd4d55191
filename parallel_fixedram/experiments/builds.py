"""Revisions of this program, each with an interpreter of its own that runs it.

A revision is unpacked from the repository with ``git archive``, which leaves nothing there, and installed into a venv.
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tarfile
from dataclasses import dataclass

from parallel_fixedram.core.errors import FixedRamError, HostError, RequestError
from parallel_fixedram.experiments import run_facts, tools

HERE = "."
"""Stands for the program that is running now, with all changes in it."""
_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Revision:
    """One of the two that are compared."""

    name: str
    """As it was asked for."""
    commit: str | None
    """Followed by ``+`` if files differ from it; None for an installed copy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """A revision that can be run."""

    revision: Revision
    python: str
    """An interpreter that finds only the package of that revision, in any folder without a package of this name."""
    path: str | None = None
    """``PYTHONPATH`` for it; None for none."""


def find_revision(name: str) -> Revision:
    """What a name stands for.

    Raises:
        RequestError: there is no such commit, or this is an installed copy, which has no other revisions.
    """
    if name == HERE:
        return Revision(name=name, commit=run_facts.commit())
    if run_facts.commit() is None:
        raise RequestError(f"{name!r}: this is an installed copy, and revisions are those of a checkout")
    try:
        said = tools.run(["git", "-C", _PACKAGE, "rev-parse", "--verify", "--end-of-options", f"{name}^{{commit}}"])
    except HostError as error:
        raise RequestError(f"{name!r} is not a revision of this checkout") from error
    return Revision(name=name, commit=said.strip())


def build(revision: Revision, folder: str) -> Build:
    """Unpack and install a revision below ``folder``; one that is there already is used again.

    Raises:
        HostError: it cannot be installed; quotes git or pip.
    """
    if revision.name == HERE:
        return Build(revision=revision, python=sys.executable, path=os.path.dirname(_PACKAGE))
    assert revision.commit is not None, "find_revision has found it"
    place = os.path.join(folder, revision.commit)
    python = os.path.join(place, "venv", "bin", "python")
    done = os.path.join(place, "installed")
    if not os.path.exists(done):
        try:
            if os.path.exists(place):
                shutil.rmtree(place)  # begun by a command that was killed
            os.makedirs(place)
            source = os.path.join(place, "source")
            _unpack(revision.commit, source)
            tools.run([sys.executable, "-m", "venv", os.path.join(place, "venv")])
            tools.run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--editable", source])
            with open(done, "w", encoding="ascii"):
                pass
        except FixedRamError as error:
            raise HostError(f"cannot install revision {revision.name!r}: {error.message}") from error
        except OSError as error:
            raise HostError.from_os(f"cannot install revision {revision.name!r}", error) from error
    return Build(revision=revision, python=python)


def _unpack(commit: str, folder: str) -> None:
    root = tools.run(["git", "-C", _PACKAGE, "rev-parse", "--show-toplevel"]).strip()
    archive = subprocess.run(["git", "-C", root, "archive", commit], capture_output=True, check=False)
    if archive.returncode:
        raise HostError(f"git archive failed: {archive.stderr.decode(errors='replace').strip()[-300:]}")
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
        tar.extractall(folder, filter="data")
