"""The capability gate: which migration capabilities may be on together, said in QEMU's own sentences.

The rules are tables in ``profiles.py``; the first one that refuses wins, as in QEMU's ``migrate_caps_check()``.
``fixed-ram`` and ``mapped-ram`` are two names of one capability: either is accepted in every profile.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from parallel_fixedram.core.errors import CapabilityError, RequestError
from parallel_fixedram.core.profiles import FIXED_RAM, IGNORE_SHARED, MAPPED_RAM, MULTIFD, TABLES, Profile

MAX_CHANNELS = 255  # multifd-channels is a uint8_t

_RECORDED = (IGNORE_SHARED, MAPPED_RAM)  # should_validate_capability(), migration/savevm.c; in the enum's order


def check(capabilities: Collection[str], profile: Profile = Profile.FIXED_RAM, *, experimental: bool = False) -> None:
    """Refuse a combination of capabilities (``migrate_caps_check()``, migration/options.c).

    Args:
        capabilities: names of the capabilities that are on; all others are off.
        profile: whose rules apply.
        experimental: lifts fixed-ram with multifd and nothing else; the rules after it still apply.

    Raises:
        CapabilityError: a name is unknown, or a rule refuses; the message is QEMU's sentence.
    """
    on = {_known(name, profile) for name in capabilities}
    for rule in TABLES[profile].rules:
        if rule.refuses(on) and not (experimental and rule.experimental):
            hint = "--experimental-multifd (experimental_multifd=True in Python) allows it" if rule.experimental else ""
            raise CapabilityError(rule.message, hint=hint)


class Capabilities:
    """The capabilities that are on; a change is checked as a whole and either takes effect as a whole or not at all."""

    def __init__(self, profile: Profile = Profile.FIXED_RAM, *, experimental: bool = False) -> None:
        self._profile = profile
        self._experimental = experimental
        self._on: frozenset[str] = frozenset()

    @property
    def on(self) -> tuple[str, ...]:
        """Names of the capabilities that are on, as the profile spells them and in the order of the enum."""
        return TABLES[self._profile].ordered(self._on)

    @property
    def fixed_ram(self) -> bool:
        """Whether fixed-ram, which later became mapped-ram, is on."""
        return self.is_on(FIXED_RAM)

    def is_on(self, name: str) -> bool:
        """Whether a capability is on.

        Raises:
            CapabilityError: the profile has no such capability.
        """
        return _known(name, self._profile) in self._on

    def set(self, changes: Mapping[str, bool]) -> None:
        """Switch capabilities on and off (``qmp_migrate_set_capabilities()``, migration/options.c).

        Only the result is checked, so a change may switch off what the present set conflicts with. If a capability
        is named by both of its names, the last one counts.

        Raises:
            CapabilityError: a name is unknown, or a rule refuses the result; nothing has changed.
        """
        merged = dict.fromkeys(self._on, True) | {_known(name, self._profile): on for name, on in changes.items()}
        result = frozenset(name for name, on in merged.items() if on)
        check(result, self._profile, experimental=self._experimental)
        self._on = result


def capabilities_for_restore(
    *,
    channels: int,
    extra: Mapping[str, bool] | None = None,
    profile: Profile = Profile.FIXED_RAM,
    experimental: bool = False,
) -> tuple[str, ...]:
    """The capabilities a restore runs with, checked: fixed-ram, multifd for more than one channel, and ``extra``.

    Whether the file agrees is ``validate_recorded``'s to say.

    Raises:
        RequestError: the number of channels is out of range, or multifd is off and channels need it.
        CapabilityError: the gate refuses.
    """
    if not 1 <= channels <= MAX_CHANNELS:
        # The underscore is QEMU's (migrate_params_check(), migration/options.c).
        raise RequestError(
            f"Parameter 'multifd_channels' expects a value between 1 and {MAX_CHANNELS}",
            hint=f"--channels takes 1 to {MAX_CHANNELS}",
        )
    needed = {FIXED_RAM: True} | ({MULTIFD: True} if channels > 1 else {})
    capabilities = Capabilities(profile, experimental=experimental)
    capabilities.set(needed | dict(extra or {}))
    if channels > 1 and not capabilities.is_on(MULTIFD):
        raise RequestError(f"capability multifd is off, but {channels} channels need it")
    return capabilities.on


def capabilities_for_save(
    *,
    channels: int,
    extra: Mapping[str, bool] | None = None,
    profile: Profile = Profile.FIXED_RAM,
    experimental: bool = False,
) -> tuple[str, ...]:
    """The capabilities a save runs with, checked: those of a restore, and what our files cannot be without.

    Raises:
        RequestError: as for a restore, or ``extra`` asks for what a file of ours cannot be.
        CapabilityError: the gate refuses.
    """
    on = capabilities_for_restore(channels=channels, extra=extra, profile=profile, experimental=experimental)
    if (fixed_ram := TABLES[profile].fixed_ram) not in on:
        raise RequestError(f"capability {fixed_ram} is off, but the file needs it")
    if IGNORE_SHARED in on:
        raise RequestError(f"capability {IGNORE_SHARED} leaves shared RAM out, which is what a save is for")
    return on


def recorded(capabilities: Collection[str]) -> tuple[str, ...]:
    """What a file's configuration section says of the capabilities that are on (``configuration_pre_save()``).

    The file is one for QEMU 9.0 and later, which reject the name fixed-ram: it says mapped-ram whatever the profile.
    """
    on = {MAPPED_RAM if name == FIXED_RAM else name for name in capabilities}
    return tuple(name for name in _RECORDED if name in on)


def validate_recorded(names: Sequence[str], local: Collection[str], profile: Profile = Profile.FIXED_RAM) -> None:
    """Compare what a stream records with what its reader has on (migration/savevm.c).

    Only capabilities that change the stream's format are compared; a recorded one of another kind is ignored.

    Args:
        names: capabilities recorded in the stream's configuration section.
        local: capabilities that are on in the reader.
        profile: which names are known.

    Raises:
        CapabilityError: a recorded name is unknown, or the two sides differ; all differences are in the message.
    """
    table = TABLES[profile]
    for name in names:
        if table.canonical(name) is None:
            raise CapabilityError(f"Received unknown capability {name}")
    received, here = recorded(names), recorded([_known(name, profile) for name in local])
    differences = [
        f"Capability {table.canonical(name)} is {_on_off(name in here)}, "
        f"but received capability is {_on_off(name in received)}"
        for name in _RECORDED
        if (name in here) != (name in received)
    ]
    if differences:
        missing = [f"--cap {table.canonical(name)}" for name in received if name not in here]
        raise CapabilityError("; ".join(differences), hint=f"{' '.join(missing)} switches it on" if missing else "")


def _known(name: str, profile: Profile) -> str:
    """The profile's spelling of a name; raises QEMU's error for a name that is not in the enum (qapi/qapi-util.c)."""
    canonical = TABLES[profile].canonical(name)
    if canonical is None:
        raise CapabilityError(f"Parameter 'capability' does not accept value '{name}'")
    return canonical


def _on_off(on: bool) -> str:
    return "on" if on else "off"
