"""libvirt's library, for processes that do nothing else, because only their end can interrupt a call of it.

It is imported only after a fork, because its connections do not survive one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from parallel_fixedram.core.errors import FixedRamError, HostError, MachineError
from parallel_fixedram.core.words import shown

_INSTALL = (
    "pip install 'parallel-fixedram[libvirt]' builds it, with a C compiler, pkg-config and libvirt-dev; "
    "Debian's package for its own Python is python3-libvirt"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Domain:
    """A connection to libvirt and a domain; both are libvirt's own objects."""

    connection: Any
    domain: Any


def open_domain(uri: str, name: str, *, with_events: bool = False) -> Domain:
    """Connect to libvirt and find a domain.

    Args:
        uri: of the connection.
        name: name or UUID of the domain.
        with_events: whether events are delivered by ``virEventRunDefaultImpl``. If not, libvirt does not expect
            keepalive messages from this process either.

    Raises:
        HostError: the library is not installed.
        MachineError: libvirt cannot be reached, or has no such domain.
    """
    libvirt = library()
    libvirt.registerErrorHandler(lambda _context, _error: None, None)  # it would print them
    if with_events:
        libvirt.virEventRegisterDefaultImpl()
    try:
        connection = libvirt.open(uri)
    except libvirt.libvirtError as error:
        raise _unreachable(uri, error) from error
    try:
        domain = _found(connection, name)
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
            raise MachineError(f"domain {name!r}: libvirt cannot look it up: {said(error)}") from error
        message = f"libvirt at {uri!r} has no domain {name!r}"
        raise MachineError(message, hint=f"virsh -c {uri} list shows those that run") from error
    return Domain(connection=connection, domain=domain)


def library() -> Any:
    """The module ``libvirt``.

    Raises:
        HostError: it is not installed.
    """
    try:
        import libvirt
        import libvirt_qemu  # noqa: F401
    except ImportError as error:
        raise HostError(f"libvirt's Python library cannot be used: {shown(str(error))}", hint=_INSTALL) from error
    return libvirt


def refuse_unsuitable(opened: Domain, name: str) -> None:
    """Refuse a domain that cannot be saved now.

    Raises:
        MachineError: it is not running, or somebody else's job is at work on it.
    """
    libvirt = library()
    try:
        if not opened.domain.isActive():
            raise MachineError(f"domain {name!r} is not running", hint=f"virsh start {name}")
        job = opened.domain.jobInfo()[0]
    except libvirt.libvirtError as error:
        raise MachineError(f"domain {name!r}: {said(error)}") from error
    if job in (libvirt.VIR_DOMAIN_JOB_BOUNDED, libvirt.VIR_DOMAIN_JOB_UNBOUNDED):
        raise MachineError(
            f"domain {name!r}: another job is under way (a save, a migration, a dump or a backup)",
            hint=f"virsh domjobinfo {name} shows it",
        )


def said(error: Exception) -> str:
    """libvirt's message, in one line."""
    return shown(str(error))


def as_failure(error: FixedRamError) -> dict[str, str]:
    """An error in a form that can be sent to another process."""
    return {"kind": type(error).__name__, "message": error.message, "hint": error.hint}


def from_failure(failure: dict[str, str]) -> FixedRamError:
    """The error that another process sent."""
    kind = HostError if failure["kind"] == HostError.__name__ else MachineError
    return kind(failure["message"], hint=failure["hint"])


def _found(connection: Any, name: str) -> Any:
    libvirt = library()
    try:
        return connection.lookupByName(name)
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
            raise
        try:
            return connection.lookupByUUIDString(name)
        except libvirt.libvirtError:
            raise error from None


def _unreachable(uri: str, error: Any) -> MachineError:
    libvirt = library()
    hint = "is libvirtd (or virtqemud) running?"
    if "ermission denied" in str(error) or error.get_error_code() in (
        libvirt.VIR_ERR_AUTH_FAILED,
        libvirt.VIR_ERR_AUTH_CANCELLED,
        libvirt.VIR_ERR_AUTH_UNAVAILABLE,
        libvirt.VIR_ERR_ACCESS_DENIED,
    ):
        hint = "run as root; a user's own domains are at --connect qemu:///session"
    return MachineError(f"cannot connect to libvirt at {uri!r}: {said(error)}", hint=hint)
