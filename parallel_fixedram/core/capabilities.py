"""The capability gate: which migration capabilities may be on together, said in QEMU's own sentences.

Capability names, their order and the order of the rules are QEMU's; the first rule that refuses wins, as in its
``migrate_caps_check()``. A profile is one version of that function, as data:

=============  =======================================================================================================
``fixed-ram``  QEMU 8.2 with the fixed-ram patch (qapi/migration.json, migration/options.c); fixed-ram's block is last
``qemu-10.0``  QEMU 10.0: fixed-ram became mapped-ram and goes with multifd, ``compress`` and ``block`` are gone
=============  =======================================================================================================

``fixed-ram`` and ``mapped-ram`` are two names of one capability: either is accepted in either profile.

Left out is what a combination alone cannot decide: the build (COLO, block migration), the host (userfaultfd for
postcopy-ram and background-snapshot, the KVM dirty ring for dirty-limit), an incoming migration that has already
started, and parameters (TLS, multifd-compression). Deprecation warnings refuse nothing and are left out too.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from parallel_fixedram.core.errors import CapabilityError, RequestError

FIXED_RAM = "fixed-ram"
MAPPED_RAM = "mapped-ram"
MULTIFD = "multifd"
IGNORE_SHARED = "x-ignore-shared"
MAX_CHANNELS = 255  # multifd-channels is a uint8_t


class Profile(StrEnum):
    """Whose rules apply."""

    FIXED_RAM = "fixed-ram"
    QEMU_10_0 = "qemu-10.0"


@dataclass(frozen=True, slots=True)
class CapabilityInfo:
    """One capability of QEMU's MigrationCapability enum (qapi/migration.json)."""

    name: str
    since: str
    """The QEMU version that brought it."""
    property: str
    """Name for ``-global migration.PROPERTY=on``, or an empty string where QEMU has none (migration/options.c)."""
    doc: str


@dataclass(frozen=True, slots=True)
class Rule:
    """One check of migrate_caps_check(): refuses when ``capability`` is on and its surroundings do not fit."""

    capability: str
    message: str
    """QEMU's sentence, exactly."""
    conflicts: tuple[str, ...] = ()
    """Refused when any of these is on."""
    requires: tuple[str, ...] = ()
    """Refused when any of these is off."""
    experimental: bool = False
    """True if the experimental flag lifts this rule."""

    def refuses(self, on: Collection[str]) -> bool:
        """Whether this rule refuses the set of capabilities that are on."""
        fits = all(name in on for name in self.requires) and not any(name in on for name in self.conflicts)
        return self.capability in on and not fits


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileTable:
    """Everything that differs between profiles."""

    fixed_ram: str
    """What this profile calls the capability that gives every page a fixed offset."""
    capabilities: tuple[CapabilityInfo, ...]
    """In the order of the enum."""
    rules: tuple[Rule, ...]
    """In the order in which they are checked."""

    def canonical(self, name: str) -> str | None:
        """The name as this profile spells it, or None if it has no such capability."""
        spelled = self.fixed_ram if name in (FIXED_RAM, MAPPED_RAM) else name
        return spelled if any(entry.name == spelled for entry in self.capabilities) else None

    def ordered(self, names: Collection[str]) -> tuple[str, ...]:
        """Canonical names in the order of the enum."""
        return tuple(entry.name for entry in self.capabilities if entry.name in names)


_CAPABILITIES_8_2 = (
    CapabilityInfo("xbzrle", "1.2", "x-xbzrle", "send a changed page as its difference from the copy sent before"),
    CapabilityInfo("rdma-pin-all", "2.0", "x-rdma-pin-all", "RDMA: lock all guest memory at the start"),
    CapabilityInfo("auto-converge", "1.6", "x-auto-converge", "slow the guest down until its writes can be followed"),
    CapabilityInfo("zero-blocks", "1.6", "x-zero-blocks", "storage migration: send a block of zeros as a mark"),
    CapabilityInfo("compress", "2.4", "x-compress", "compress pages one by one in a pool of threads"),
    CapabilityInfo("events", "2.4", "x-events", "report every change of the migration's state"),
    CapabilityInfo("postcopy-ram", "2.6", "x-postcopy-ram", "run on the destination first, fetch missing pages later"),
    CapabilityInfo("x-colo", "2.8", "x-colo", "keep two guests in lock step instead of ending the migration"),
    CapabilityInfo("release-ram", "2.9", "x-release-ram", "postcopy: free a page on the source once it is sent"),
    CapabilityInfo("block", "2.10", "x-block", "migrate the disks too"),
    CapabilityInfo("return-path", "2.10", "x-return-path", "let the destination answer the source, also in precopy"),
    CapabilityInfo("pause-before-switchover", "2.11", "", "wait for a command before device state is saved"),
    CapabilityInfo("multifd", "4.0", "x-multifd", "more than one channel for pages"),
    CapabilityInfo("dirty-bitmaps", "2.12", "", "migrate the dirty bitmaps of block devices"),
    CapabilityInfo("postcopy-blocktime", "3.0", "", "measure how long postcopy makes vCPUs wait"),
    CapabilityInfo("late-block-activate", "3.0", "", "the destination takes over block devices only when it runs"),
    CapabilityInfo(IGNORE_SHARED, "4.0", "", "leave out shared RAM that the destination can reach by itself"),
    CapabilityInfo("validate-uuid", "4.2", "", "refuse a stream of a guest with another UUID"),
    CapabilityInfo("background-snapshot", "6.0", "x-background-snapshot", "RAM as it was at the start, guest running"),
    CapabilityInfo("zero-copy-send", "7.1", "x-zero-copy-send", "send pages without copying them in the kernel"),
    CapabilityInfo("postcopy-preempt", "7.1", "x-postcopy-preempt", "postcopy: requested pages overtake all others"),
    CapabilityInfo("switchover-ack", "8.1", "x-switchover-ack", "stop the guest only when the destination is ready"),
    CapabilityInfo("dirty-limit", "8.1", "x-dirty-limit", "hold each vCPU to a rate of dirtied pages"),
)

_BACKGROUND_SNAPSHOT_CONFLICTS = (
    "postcopy-ram", "dirty-bitmaps", "postcopy-blocktime", "late-block-activate", "return-path", "multifd",
    "pause-before-switchover", "auto-converge", "release-ram", "rdma-pin-all", "compress", "xbzrle", "x-colo",
    "validate-uuid", "zero-copy-send",
)  # fmt: skip

_RULES_8_2 = (
    Rule("postcopy-ram", "Postcopy is not compatible with ignore-shared", conflicts=(IGNORE_SHARED,)),
    Rule("postcopy-ram", "Postcopy is not yet compatible with multifd", conflicts=("multifd",)),
    *(
        Rule("background-snapshot", f"Background-snapshot is not compatible with {name}", conflicts=(name,))
        for name in _BACKGROUND_SNAPSHOT_CONFLICTS
    ),
    Rule(
        "zero-copy-send",
        "Zero copy only available for non-compressed non-TLS multifd migration",
        requires=("multifd",),
        conflicts=("compress", "xbzrle"),
    ),
    Rule("postcopy-preempt", "Postcopy preempt requires postcopy-ram", requires=("postcopy-ram",)),
    Rule("postcopy-preempt", "Postcopy preempt not compatible with compress", conflicts=("compress",)),
    Rule("multifd", "Multifd is not compatible with compress", conflicts=("compress",)),
    Rule("switchover-ack", "Capability 'switchover-ack' requires capability 'return-path'", requires=("return-path",)),
    Rule(
        "dirty-limit",
        "dirty-limit conflicts with auto-converge either of then available currently",
        conflicts=("auto-converge",),
    ),
    Rule("multifd", "Multifd is not compatible with xbzrle", conflicts=("xbzrle",)),
    Rule("compress", "Compression is not compatible with xbzrle", conflicts=("xbzrle",)),
)


def _rules_without(capability: str, rules: Iterable[Rule]) -> tuple[Rule, ...]:
    """The rules that are left when a capability has been removed from QEMU."""
    narrowed = (
        replace(rule, conflicts=tuple(name for name in rule.conflicts if name != capability))
        for rule in rules
        if rule.capability != capability
    )
    return tuple(rule for rule in narrowed if rule.conflicts or rule.requires)


TABLES: Mapping[Profile, ProfileTable] = {
    Profile.FIXED_RAM: ProfileTable(
        fixed_ram=FIXED_RAM,
        capabilities=(
            *_CAPABILITIES_8_2,
            CapabilityInfo(FIXED_RAM, "8.2", "x-fixed-ram", "every page of RAM has its own fixed offset in the file"),
        ),
        rules=(
            *_RULES_8_2,
            Rule(
                FIXED_RAM, "Fixed-ram migration is incompatible with multifd", conflicts=("multifd",), experimental=True
            ),
            Rule(FIXED_RAM, "Fixed-ram migration is incompatible with xbzrle", conflicts=("xbzrle",)),
            Rule(FIXED_RAM, "Fixed-ram migration is incompatible with compression", conflicts=("compress",)),
            Rule(FIXED_RAM, "Fixed-ram migration is incompatible with postcopy ram", conflicts=("postcopy-ram",)),
        ),
    ),
    Profile.QEMU_10_0: ProfileTable(
        fixed_ram=MAPPED_RAM,
        capabilities=(
            *(entry for entry in _CAPABILITIES_8_2 if entry.name not in ("compress", "block")),
            CapabilityInfo(MAPPED_RAM, "9.0", "mapped-ram", "every page of RAM has its own fixed offset in the file"),
        ),
        rules=(
            *_rules_without("compress", _RULES_8_2),
            Rule(MAPPED_RAM, "Mapped-ram migration is incompatible with xbzrle", conflicts=("xbzrle",)),
            Rule(MAPPED_RAM, "Mapped-ram migration is incompatible with postcopy", conflicts=("postcopy-ram",)),
        ),
    ),
}

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
        missing = [f"--cap {name}" for name in received if name not in here]
        raise CapabilityError("; ".join(differences), hint=f"{' '.join(missing)} switches it on" if missing else "")


def _known(name: str, profile: Profile) -> str:
    """The profile's spelling of a name; raises QEMU's error for a name that is not in the enum (qapi/qapi-util.c)."""
    canonical = TABLES[profile].canonical(name)
    if canonical is None:
        raise CapabilityError(f"Parameter 'capability' does not accept value '{name}'")
    return canonical


def _on_off(on: bool) -> str:
    return "on" if on else "off"
