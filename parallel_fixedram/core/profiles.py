"""The tables behind the gate, one QEMU a profile: names, their order and the order of the rules are that QEMU's.

=============  =======================================================================================================
``fixed-ram``  QEMU 8.2 with the fixed-ram patch (qapi/migration.json, migration/options.c); fixed-ram's block is last
``qemu-10.0``  QEMU 10.0: fixed-ram became mapped-ram and goes with multifd, ``compress`` and ``block`` are gone
``qemu-11.1``  QEMU 11.1: postcopy goes with multifd, x-colo needs a return path, ``zero-blocks`` is gone
=============  =======================================================================================================

Left out is what a combination alone cannot decide: the build (COLO, block migration), the host (userfaultfd for
postcopy-ram and background-snapshot, the KVM dirty ring for dirty-limit), an incoming migration that has already
started, and parameters (TLS, multifd-compression). Deprecation warnings refuse nothing and are left out too.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

FIXED_RAM = "fixed-ram"
MAPPED_RAM = "mapped-ram"
MULTIFD = "multifd"
IGNORE_SHARED = "x-ignore-shared"


class Profile(StrEnum):
    """Whose rules apply."""

    FIXED_RAM = "fixed-ram"
    QEMU_10_0 = "qemu-10.0"
    QEMU_11_1 = "qemu-11.1"


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


_CAPABILITIES_10_0 = (
    *(entry for entry in _CAPABILITIES_8_2 if entry.name not in ("compress", "block")),
    CapabilityInfo(MAPPED_RAM, "9.0", "mapped-ram", "every page of RAM has its own fixed offset in the file"),
)

_RULES_10_0 = (
    *_rules_without("compress", _RULES_8_2),
    Rule(MAPPED_RAM, "Mapped-ram migration is incompatible with xbzrle", conflicts=("xbzrle",)),
    Rule(MAPPED_RAM, "Mapped-ram migration is incompatible with postcopy", conflicts=("postcopy-ram",)),
)

_PROPERTIES_SINCE_10_0 = {"postcopy-blocktime": "postcopy-blocktime", IGNORE_SHARED: IGNORE_SHARED}
"""Capabilities that had no property in 10.0 and have one in 11.1."""

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
    Profile.QEMU_10_0: ProfileTable(fixed_ram=MAPPED_RAM, capabilities=_CAPABILITIES_10_0, rules=_RULES_10_0),
    Profile.QEMU_11_1: ProfileTable(
        fixed_ram=MAPPED_RAM,
        capabilities=tuple(
            replace(entry, property=_PROPERTIES_SINCE_10_0.get(entry.name, entry.property))
            for entry in _CAPABILITIES_10_0
            if entry.name != "zero-blocks"
        ),
        rules=(
            Rule("x-colo", "Capability 'x-colo' requires capability 'return-path'", requires=("return-path",)),
            *(rule for rule in _RULES_10_0 if (rule.capability, rule.conflicts) != ("postcopy-ram", ("multifd",))),
        ),
    ),
}
