import itertools
import json
import subprocess
from collections.abc import Iterator
from dataclasses import FrozenInstanceError
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.examples import some_of
from support.qemu_tools import require_qemu_version

from parallel_fixedram.core.capabilities import (
    Capabilities,
    capabilities_for_save,
    check,
    recorded,
    validate_recorded,
)
from parallel_fixedram.core.errors import CapabilityError, RequestError
from parallel_fixedram.core.profiles import TABLES, Profile

PATCH = Profile.FIXED_RAM
RELEASED = Profile.QEMU_10_0
LATEST = Profile.QEMU_11_1


def words(text: str) -> list[str]:
    return text.split()


ENUM_OF_THE_PATCH = words(
    "xbzrle rdma-pin-all auto-converge zero-blocks compress events postcopy-ram x-colo release-ram block return-path "
    "pause-before-switchover multifd dirty-bitmaps postcopy-blocktime late-block-activate x-ignore-shared "
    "validate-uuid background-snapshot zero-copy-send postcopy-preempt switchover-ack dirty-limit fixed-ram"
)
ENUM_OF_QEMU_10_0 = words(
    "xbzrle rdma-pin-all auto-converge zero-blocks events postcopy-ram x-colo release-ram return-path "
    "pause-before-switchover multifd dirty-bitmaps postcopy-blocktime late-block-activate x-ignore-shared "
    "validate-uuid background-snapshot zero-copy-send postcopy-preempt switchover-ack dirty-limit mapped-ram"
)
ENUM_OF_QEMU_11_1 = [name for name in ENUM_OF_QEMU_10_0 if name != "zero-blocks"]

WITH_MULTIFD = "Fixed-ram migration is incompatible with multifd"
WITH_XBZRLE = "Fixed-ram migration is incompatible with xbzrle"
WITH_COMPRESSION = "Fixed-ram migration is incompatible with compression"
WITH_POSTCOPY = "Fixed-ram migration is incompatible with postcopy ram"
POSTCOPY_MULTIFD = "Postcopy is not yet compatible with multifd"
MULTIFD_COMPRESS = "Multifd is not compatible with compress"
MULTIFD_XBZRLE = "Multifd is not compatible with xbzrle"
COMPRESS_XBZRLE = "Compression is not compatible with xbzrle"
COLO = "Capability 'x-colo' requires capability 'return-path'"
ZERO_COPY = "Zero copy only available for non-compressed non-TLS multifd migration"


def verdict(*names: str, profile: Profile = PATCH, experimental: bool = False) -> str:
    """The gate's sentence, or an empty string if it accepts."""
    try:
        check(names, profile, experimental=experimental)
    except CapabilityError as error:
        return error.message
    return ""


# ----------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("profile", "names"),
    [(PATCH, ENUM_OF_THE_PATCH), (RELEASED, ENUM_OF_QEMU_10_0), (LATEST, ENUM_OF_QEMU_11_1)],
)
def test_the_names_are_those_of_the_enum_in_its_order(profile, names):
    assert [entry.name for entry in TABLES[profile].capabilities] == names


def test_the_capability_of_the_patch_is_described_as_such():
    entry = TABLES[PATCH].capabilities[-1]
    assert (entry.name, entry.property, entry.since) == ("fixed-ram", "x-fixed-ram", "8.2")


def test_its_released_form_has_a_property_without_the_x():
    entry = TABLES[RELEASED].capabilities[-1]
    assert (entry.name, entry.property, entry.since) == ("mapped-ram", "mapped-ram", "9.0")


@pytest.mark.parametrize("profile", Profile)
def test_every_capability_has_a_version_and_one_line_of_meaning(profile):
    for entry in TABLES[profile].capabilities:
        major, minor = entry.since.split(".")
        assert (1, 2) <= (int(major), int(minor)) <= (9, 0)
        assert entry.doc
        assert "\n" not in entry.doc


@pytest.mark.parametrize("profile", Profile)
def test_rules_name_only_capabilities_of_their_profile(profile):
    known = {entry.name for entry in TABLES[profile].capabilities}
    for rule in TABLES[profile].rules:
        assert {rule.capability, *rule.conflicts, *rule.requires} <= known
        assert rule.conflicts or rule.requires


def test_rules_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        TABLES[PATCH].rules[0].message = ""


@pytest.mark.parametrize("profile", Profile)
@pytest.mark.parametrize("name", ["", "fixed_ram", "FIXED-RAM", "x-fixed-ram", "fixed-ram ", "none", "on"])
def test_an_unknown_name_is_refused_in_qemus_words(profile, name):
    expected = f"Parameter 'capability' does not accept value '{name}'"
    assert verdict(name, profile=profile) == expected
    with pytest.raises(CapabilityError, match=r"^Parameter 'capability' does not accept value "):
        Capabilities(profile).is_on(name)


@pytest.mark.parametrize("name", ["compress", "block"])
def test_what_was_removed_from_qemu_is_unknown_in_the_later_profile(name):
    assert verdict(name) == ""
    assert verdict(name, profile=RELEASED) == f"Parameter 'capability' does not accept value '{name}'"


@pytest.mark.parametrize("profile", Profile)
@pytest.mark.parametrize("name", ["fixed-ram", "mapped-ram"])
def test_both_names_mean_the_same_capability_in_both_profiles(profile, name):
    capabilities = Capabilities(profile)
    capabilities.set({name: True})
    assert capabilities.on == (TABLES[profile].fixed_ram,)
    assert capabilities.fixed_ram
    assert capabilities.is_on("fixed-ram")
    assert capabilities.is_on("mapped-ram")


# ----------------------------------------------------------------------------------------------------- rules


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ("", ""),
        ("multifd", WITH_MULTIFD),
        ("xbzrle", WITH_XBZRLE),
        ("xbzrle postcopy-ram", WITH_XBZRLE),
        ("compress", WITH_COMPRESSION),
        ("compress postcopy-ram", WITH_COMPRESSION),
        ("postcopy-ram", WITH_POSTCOPY),
        ("multifd postcopy-ram", POSTCOPY_MULTIFD),
        ("multifd postcopy-ram xbzrle", POSTCOPY_MULTIFD),
        ("multifd postcopy-ram compress", POSTCOPY_MULTIFD),
        ("multifd postcopy-ram xbzrle compress", POSTCOPY_MULTIFD),
        ("multifd compress", MULTIFD_COMPRESS),
        ("multifd compress xbzrle", MULTIFD_COMPRESS),
        ("multifd xbzrle", MULTIFD_XBZRLE),
        ("xbzrle compress", COMPRESS_XBZRLE),
        ("xbzrle compress postcopy-ram", COMPRESS_XBZRLE),
        ("auto-converge return-path background-snapshot", "Background-snapshot is not compatible with return-path"),
        ("events auto-converge return-path x-ignore-shared validate-uuid block x-colo", ""),
    ],
)
@pytest.mark.parametrize("name", ["fixed-ram", "mapped-ram"])
def test_fixed_ram_with_others_is_refused_by_the_first_rule_in_qemus_order(name, others, message):
    assert verdict(name, *others.split()) == message


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("postcopy-ram x-ignore-shared", "Postcopy is not compatible with ignore-shared"),
        ("postcopy-ram x-ignore-shared multifd", "Postcopy is not compatible with ignore-shared"),
        ("postcopy-ram multifd", POSTCOPY_MULTIFD),
        ("zero-copy-send", ZERO_COPY),
        ("zero-copy-send multifd", ""),
        ("zero-copy-send multifd xbzrle", ZERO_COPY),
        ("postcopy-preempt", "Postcopy preempt requires postcopy-ram"),
        ("postcopy-preempt postcopy-ram", ""),
        ("switchover-ack", "Capability 'switchover-ack' requires capability 'return-path'"),
        ("switchover-ack return-path", ""),
        ("dirty-limit", ""),
        ("dirty-limit auto-converge", "dirty-limit conflicts with auto-converge either of then available currently"),
        ("multifd xbzrle", MULTIFD_XBZRLE),
        ("multifd xbzrle switchover-ack", "Capability 'switchover-ack' requires capability 'return-path'"),
        ("x-ignore-shared multifd auto-converge dirty-bitmaps release-ram validate-uuid return-path x-colo", ""),
    ],
)
@pytest.mark.parametrize("profile", [PATCH, RELEASED])
def test_the_older_rules_hold_until_qemu_10(profile, names, message):
    assert verdict(*names.split(), profile=profile) == message


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("zero-copy-send multifd compress", ZERO_COPY),
        ("postcopy-preempt postcopy-ram compress", "Postcopy preempt not compatible with compress"),
        ("postcopy-preempt compress", "Postcopy preempt requires postcopy-ram"),
        ("multifd compress", MULTIFD_COMPRESS),
        ("compress xbzrle", COMPRESS_XBZRLE),
        ("block compress", ""),
    ],
)
def test_the_rules_about_compress_hold_where_compress_exists(names, message):
    assert verdict(*names.split()) == message


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ("", ""),
        ("multifd", ""),
        ("xbzrle", "Mapped-ram migration is incompatible with xbzrle"),
        ("xbzrle postcopy-ram", "Mapped-ram migration is incompatible with xbzrle"),
        ("postcopy-ram", "Mapped-ram migration is incompatible with postcopy"),
        ("multifd postcopy-ram", POSTCOPY_MULTIFD),
        ("multifd xbzrle", MULTIFD_XBZRLE),
        ("multifd zero-copy-send", ""),
        ("background-snapshot", ""),
        ("multifd x-ignore-shared events zero-blocks pause-before-switchover", ""),
    ],
)
@pytest.mark.parametrize("name", ["fixed-ram", "mapped-ram"])
def test_the_released_rules_let_mapped_ram_go_with_multifd(name, others, message):
    assert verdict(name, *others.split(), profile=RELEASED) == message


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("multifd postcopy-ram", ""),
        ("multifd postcopy-ram postcopy-preempt", ""),
        ("mapped-ram multifd postcopy-ram", "Mapped-ram migration is incompatible with postcopy"),
        ("fixed-ram multifd", ""),
        ("fixed-ram xbzrle", "Mapped-ram migration is incompatible with xbzrle"),
        ("postcopy-ram x-ignore-shared", "Postcopy is not compatible with ignore-shared"),
        ("x-colo", COLO),
        ("x-colo return-path", ""),
        ("x-colo postcopy-ram x-ignore-shared", COLO),
        ("zero-blocks", "Parameter 'capability' does not accept value 'zero-blocks'"),
    ],
)
def test_what_qemu_11_has_changed(names, message):
    assert verdict(*words(names), profile=LATEST) == message


def test_two_capabilities_got_a_property_in_qemu_11():
    properties = [{entry.name: entry.property for entry in TABLES[profile].capabilities} for profile in TABLES]
    for name in ("postcopy-blocktime", "x-ignore-shared"):
        assert [each[name] for each in properties] == ["", "", name]


@pytest.mark.parametrize("profile", Profile)
def test_background_snapshot_refuses_its_list_and_nothing_else(profile):
    refused = words(
        "postcopy-ram dirty-bitmaps postcopy-blocktime late-block-activate return-path multifd pause-before-switchover "
        "auto-converge release-ram rdma-pin-all compress xbzrle x-colo validate-uuid zero-copy-send"
    )
    own_rules_first = {"postcopy-preempt", "switchover-ack"} | ({"x-colo"} if profile == LATEST else set())
    for entry in TABLES[profile].capabilities:
        if entry.name not in own_rules_first:
            expected = f"Background-snapshot is not compatible with {entry.name}" if entry.name in refused else ""
            assert verdict("background-snapshot", entry.name, profile=profile) == expected


def test_background_snapshot_names_the_first_of_its_list_not_of_the_enum():
    message = "Background-snapshot is not compatible with dirty-bitmaps"
    assert verdict("background-snapshot", "xbzrle", "auto-converge", "dirty-bitmaps") == message


def naive_twin(on: set[str], *, experimental: bool = False) -> str:
    """The 8.2 function with the patch, written down a second time as a chain of ifs."""
    if "postcopy-ram" in on:
        if "x-ignore-shared" in on:
            return "Postcopy is not compatible with ignore-shared"
        if "multifd" in on:
            return POSTCOPY_MULTIFD
    if "background-snapshot" in on:
        for name in words(
            "postcopy-ram dirty-bitmaps postcopy-blocktime late-block-activate return-path multifd "
            "pause-before-switchover auto-converge release-ram rdma-pin-all compress xbzrle x-colo validate-uuid "
            "zero-copy-send"
        ):
            if name in on:
                return "Background-snapshot is not compatible with " + name
    if "zero-copy-send" in on and ("multifd" not in on or "compress" in on or "xbzrle" in on):
        return ZERO_COPY
    if "postcopy-preempt" in on:
        if "postcopy-ram" not in on:
            return "Postcopy preempt requires postcopy-ram"
        if "compress" in on:
            return "Postcopy preempt not compatible with compress"
    if "multifd" in on and "compress" in on:
        return MULTIFD_COMPRESS
    if "switchover-ack" in on and "return-path" not in on:
        return "Capability 'switchover-ack' requires capability 'return-path'"
    if "dirty-limit" in on and "auto-converge" in on:
        return "dirty-limit conflicts with auto-converge either of then available currently"
    if "multifd" in on and "xbzrle" in on:
        return MULTIFD_XBZRLE
    if "compress" in on and "xbzrle" in on:
        return COMPRESS_XBZRLE
    if "fixed-ram" in on:
        if "multifd" in on and not experimental:
            return WITH_MULTIFD
        if "xbzrle" in on:
            return WITH_XBZRLE
        if "compress" in on:
            return WITH_COMPRESSION
        if "postcopy-ram" in on:
            return WITH_POSTCOPY
    return ""


def naive_twin_of_10_0(on: set[str]) -> str:
    """10.0 differs from 8.2 in the last block only, once compress is off."""
    older = naive_twin(on - {"mapped-ram"})
    if not older and "mapped-ram" in on:
        if "xbzrle" in on:
            return "Mapped-ram migration is incompatible with xbzrle"
        if "postcopy-ram" in on:
            return "Mapped-ram migration is incompatible with postcopy"
    return older


def naive_twin_of_11_1(on: set[str]) -> str:
    """11.1 asks for COLO's return path first, and has no word against postcopy with multifd."""
    if "x-colo" in on and "return-path" not in on:
        return COLO
    older = naive_twin_of_10_0(on)
    if older != POSTCOPY_MULTIFD:
        return older
    without_postcopy = naive_twin_of_10_0(on - {"postcopy-ram"})
    if "background-snapshot" in on:
        return "Background-snapshot is not compatible with postcopy-ram"
    if without_postcopy == "Postcopy preempt requires postcopy-ram":
        without_postcopy = naive_twin_of_10_0(on - {"postcopy-ram", "postcopy-preempt"})
    return without_postcopy or ("Mapped-ram migration is incompatible with postcopy" if "mapped-ram" in on else "")


@given(st.sets(st.sampled_from(ENUM_OF_THE_PATCH), max_size=7))
def test_the_patchs_table_agrees_with_a_chain_of_ifs(on):
    assert verdict(*on) == naive_twin(on)


@given(st.sets(st.sampled_from(ENUM_OF_QEMU_10_0), max_size=7))
def test_the_released_table_agrees_with_a_chain_of_ifs(on):
    assert verdict(*on, profile=RELEASED) == naive_twin_of_10_0(on)


@given(st.sets(st.sampled_from(ENUM_OF_QEMU_11_1), max_size=7))
def test_the_latest_table_agrees_with_a_chain_of_ifs(on):
    assert verdict(*on, profile=LATEST) == naive_twin_of_11_1(on)


@pytest.mark.parametrize(
    ("profile", "names", "twin"),
    [
        (PATCH, ENUM_OF_THE_PATCH, naive_twin),
        (RELEASED, ENUM_OF_QEMU_10_0, naive_twin_of_10_0),
        (LATEST, ENUM_OF_QEMU_11_1, naive_twin_of_11_1),
    ],
)
def test_every_set_of_up_to_three_agrees_with_a_chain_of_ifs(profile, names, twin):
    for count in range(4):
        for on in some_of(itertools.combinations(names, count), 1 if count < 3 else 11):
            assert verdict(*on, profile=profile) == twin(set(on)), on


# ----------------------------------------------------------------------------------------------------- the flag


def subsets(names: str) -> Iterator[tuple[str, ...]]:
    words = names.split()
    return itertools.chain.from_iterable(itertools.combinations(words, count) for count in range(len(words) + 1))


def test_the_experimental_flag_changes_only_the_verdict_on_fixed_ram_with_multifd():
    lifted = 0
    for on in subsets(
        "fixed-ram multifd xbzrle compress postcopy-ram x-ignore-shared zero-copy-send background-snapshot return-path"
    ):
        without, with_flag = verdict(*on), verdict(*on, experimental=True)
        assert with_flag == naive_twin(set(on), experimental=True)
        if without == WITH_MULTIFD:
            lifted += 1
        else:
            assert with_flag == without
    assert lifted == 8  # x-ignore-shared, zero-copy-send and return-path are free, all the rest is refused earlier


def test_the_experimental_flag_changes_nothing_in_the_released_profile():
    for on in subsets("mapped-ram multifd xbzrle postcopy-ram x-ignore-shared zero-copy-send background-snapshot"):
        assert verdict(*on, profile=RELEASED) == verdict(*on, profile=RELEASED, experimental=True)


def test_exactly_one_rule_of_all_profiles_can_be_lifted():
    rules = [rule for table in TABLES.values() for rule in table.rules if rule.experimental]
    assert [rule.message for rule in rules] == [WITH_MULTIFD]


def test_the_refusal_that_the_flag_lifts_names_the_flag():
    with pytest.raises(CapabilityError) as caught:
        check(["fixed-ram", "multifd"], PATCH)
    assert "--experimental-multifd" in caught.value.hint
    assert "experimental_multifd=True" in caught.value.hint
    assert caught.value.exit_code == 2


def test_a_refusal_that_the_flag_does_not_lift_has_no_hint():
    for names in ("fixed-ram xbzrle", "multifd xbzrle", "nothing"):
        with pytest.raises(CapabilityError) as caught:
            check(names.split(), PATCH, experimental=True)
        assert caught.value.hint == ""


# ----------------------------------------------------------------------------------------------------- setting


def test_nothing_is_on_to_begin_with():
    capabilities = Capabilities()
    assert capabilities.on == ()
    assert not capabilities.fixed_ram


def test_what_is_on_is_listed_in_the_order_of_the_enum():
    capabilities = Capabilities()
    capabilities.set({"fixed-ram": True, "events": True, "auto-converge": True})
    assert capabilities.on == ("auto-converge", "events", "fixed-ram")


def test_a_refused_set_leaves_all_old_values():
    capabilities = Capabilities()
    capabilities.set({"xbzrle": True, "events": True})
    with pytest.raises(CapabilityError, match=f"^{WITH_XBZRLE}$"):
        capabilities.set({"events": False, "return-path": True, "fixed-ram": True})
    assert capabilities.on == ("xbzrle", "events")


def test_an_unknown_name_leaves_all_old_values():
    capabilities = Capabilities()
    capabilities.set({"events": True})
    with pytest.raises(CapabilityError, match=r"^Parameter 'capability' does not accept value 'nothing'$"):
        capabilities.set({"events": False, "nothing": False})
    assert capabilities.on == ("events",)


def test_the_merged_set_is_checked_and_not_each_change_on_its_way():
    capabilities = Capabilities()
    capabilities.set({"xbzrle": True})
    capabilities.set({"fixed-ram": True, "xbzrle": False})
    assert capabilities.on == ("fixed-ram",)


def test_a_set_is_checked_together_with_what_is_on_already():
    capabilities = Capabilities()
    capabilities.set({"multifd": True})
    with pytest.raises(CapabilityError, match=f"^{WITH_MULTIFD}$"):
        capabilities.set({"mapped-ram": True})
    assert capabilities.on == ("multifd",)


def test_the_experimental_flag_holds_for_every_set():
    capabilities = Capabilities(experimental=True)
    capabilities.set({"multifd": True})
    capabilities.set({"fixed-ram": True})
    assert capabilities.on == ("multifd", "fixed-ram")


def test_switching_off_by_the_other_name_switches_off():
    capabilities = Capabilities()
    capabilities.set({"fixed-ram": True})
    capabilities.set({"mapped-ram": False})
    assert not capabilities.fixed_ram


changes = st.dictionaries(st.sampled_from([*ENUM_OF_THE_PATCH, "nothing"]), st.booleans(), max_size=4)


@given(st.lists(changes, max_size=5))
def test_any_row_of_sets_leaves_either_the_merged_or_the_old_values(row):
    capabilities, model = Capabilities(), set[str]()
    for change in row:
        merged = {name for name in ENUM_OF_THE_PATCH if change.get(name, name in model)}
        refused = "nothing" in change or naive_twin(merged) != ""
        if refused:
            with pytest.raises(CapabilityError):
                capabilities.set(change)
        else:
            capabilities.set(change)
            model = merged
        assert set(capabilities.on) == model


# ----------------------------------------------------------------------------------------------------- a save


def test_one_channel_needs_fixed_ram_only():
    assert capabilities_for_save(channels=1) == ("fixed-ram",)
    assert capabilities_for_save(channels=1, profile=RELEASED) == ("mapped-ram",)


def test_the_flag_without_need_is_harmless():
    assert capabilities_for_save(channels=1, experimental=True) == ("fixed-ram",)


@pytest.mark.parametrize("channels", [2, 4, 255])
def test_more_than_one_channel_is_multifd(channels):
    with pytest.raises(CapabilityError, match=f"^{WITH_MULTIFD}$") as caught:
        capabilities_for_save(channels=channels)
    assert "--experimental-multifd" in caught.value.hint
    assert capabilities_for_save(channels=channels, experimental=True) == ("multifd", "fixed-ram")
    assert capabilities_for_save(channels=channels, profile=RELEASED) == ("multifd", "mapped-ram")


@pytest.mark.parametrize("channels", [-1, 0, 256, 10000])
@pytest.mark.parametrize("experimental", [False, True])
def test_a_number_of_channels_that_qemu_would_refuse_is_refused(channels, experimental):
    with pytest.raises(
        RequestError, match=r"^Parameter 'multifd_channels' expects a value between 1 and 255$"
    ) as caught:
        capabilities_for_save(channels=channels, experimental=experimental)
    assert caught.value.exit_code == 2


def test_extra_capabilities_are_merged_and_checked():
    assert capabilities_for_save(channels=1, extra={"events": True, "xbzrle": False}) == ("events", "fixed-ram")
    with pytest.raises(CapabilityError, match=f"^{WITH_XBZRLE}$"):
        capabilities_for_save(channels=1, extra={"xbzrle": True})
    with pytest.raises(CapabilityError, match=f"^{MULTIFD_XBZRLE}$"):
        capabilities_for_save(channels=2, extra={"xbzrle": True}, experimental=True)


def test_multifd_asked_for_with_one_channel_is_still_multifd():
    with pytest.raises(CapabilityError, match=f"^{WITH_MULTIFD}$"):
        capabilities_for_save(channels=1, extra={"multifd": True})
    assert capabilities_for_save(channels=1, extra={"multifd": True}, experimental=True) == ("multifd", "fixed-ram")


@pytest.mark.parametrize("name", ["fixed-ram", "mapped-ram"])
def test_a_save_without_fixed_ram_is_refused(name):
    with pytest.raises(RequestError, match=r"^capability fixed-ram is off, but the file needs it$"):
        capabilities_for_save(channels=1, extra={name: False})


def test_several_channels_without_multifd_are_refused():
    with pytest.raises(RequestError, match=r"^capability multifd is off, but 4 channels need it$"):
        capabilities_for_save(channels=4, extra={"multifd": False}, experimental=True)


# ----------------------------------------------------------------------------------------------------- the stream


def test_a_file_records_only_what_changes_its_format_and_under_the_final_name():
    assert recorded(["fixed-ram", "multifd", "events"]) == ("mapped-ram",)
    assert recorded(["mapped-ram", "x-ignore-shared"]) == ("x-ignore-shared", "mapped-ram")
    assert recorded([]) == ()


@pytest.mark.parametrize("profile", Profile)
@pytest.mark.parametrize(("received", "local"), [*itertools.product(["fixed-ram", "mapped-ram"], repeat=2)])
def test_both_sides_having_it_on_is_accepted_by_either_name(profile, received, local):
    validate_recorded([received], [local], profile)


@pytest.mark.parametrize(
    ("received", "local", "profile", "message"),
    [
        ("mapped-ram", "", PATCH, "Capability fixed-ram is off, but received capability is on"),
        ("fixed-ram", "", RELEASED, "Capability mapped-ram is off, but received capability is on"),
        ("", "fixed-ram", PATCH, "Capability fixed-ram is on, but received capability is off"),
        ("", "fixed-ram", RELEASED, "Capability mapped-ram is on, but received capability is off"),
        (
            "mapped-ram x-ignore-shared",
            "mapped-ram",
            RELEASED,
            "Capability x-ignore-shared is off, but received capability is on",
        ),
        (
            "x-ignore-shared",
            "fixed-ram",
            PATCH,
            "Capability x-ignore-shared is off, but received capability is on; "
            "Capability fixed-ram is on, but received capability is off",
        ),
        ("fixed-ram nothing", "", PATCH, "Received unknown capability nothing"),
        ("compress mapped-ram", "mapped-ram", RELEASED, "Received unknown capability compress"),
    ],
)
def test_a_stream_that_does_not_fit_its_reader_is_refused_in_qemus_words(received, local, profile, message):
    with pytest.raises(CapabilityError) as caught:
        validate_recorded(received.split(), local.split(), profile)
    assert caught.value.message == message


def test_recorded_capabilities_that_do_not_change_the_format_are_ignored():
    validate_recorded(["multifd", "mapped-ram", "mapped-ram"], ["fixed-ram", "xbzrle"])


def test_a_reader_with_an_unknown_capability_is_refused():
    with pytest.raises(CapabilityError, match=r"^Parameter 'capability' does not accept value 'nothing'$"):
        validate_recorded(["mapped-ram"], ["nothing"])


# ----------------------------------------------------------------------------------------------------- the real thing


class CapabilityMonitor:
    """A QEMU without a machine, asked for its sentences on sets of capabilities."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._requests, self._answers = process.stdin, process.stdout
        self._on: frozenset[str] = frozenset()
        self._answers.readline()
        self.execute("qmp_capabilities")

    def execute(self, command: str, **arguments: object) -> Any:
        request = json.dumps({"execute": command, "arguments": arguments}, separators=(",", ":"))
        self._requests.write(request + "\n")
        self._requests.flush()
        return json.loads(self._answers.readline())

    def names(self) -> list[str]:
        return [each["capability"] for each in self.execute("query-migrate-capabilities")["return"]]

    def properties(self) -> set[str]:
        return {each["name"] for each in self.execute("qom-list-properties", typename="migration")["return"]}

    def verdict(self, *names: str) -> str:
        """QEMU's sentence on a set. It is told what changes only: it reads a request byte by byte, each in a round."""
        on = frozenset(names)
        changes = [{"capability": name, "state": name in on} for name in on ^ self._on]
        answer = self.execute("migrate-set-capabilities", capabilities=changes)
        if "error" in answer:
            return str(answer["error"]["desc"])
        self._on = on
        return ""


VERSIONS = {RELEASED: (10, 0), LATEST: (11, 1)}
"""Whose rules a profile has."""


@pytest.fixture
def monitor(profile: Profile) -> Iterator[CapabilityMonitor]:
    """Of a QEMU of the profile's version."""
    qemu = require_qemu_version(*VERSIONS[profile])
    command = [qemu, "-machine", "none", "-nodefaults", "-display", "none", "-qmp", "stdio"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            yield CapabilityMonitor(process)
        finally:
            process.kill()


@pytest.mark.qemu
@pytest.mark.parametrize("profile", VERSIONS)
def test_every_set_of_up_to_three_gets_qemus_own_verdict(profile, monitor):
    of_the_host = (
        "not supported by host kernel",
        "with guest memory configuration",
        "requires KVM",
        "compiled without",
    )
    names = [entry.name for entry in TABLES[profile].capabilities]
    sets = itertools.chain.from_iterable(itertools.combinations(names, count) for count in range(4))
    compared = 0
    for on in sets:
        answer = monitor.verdict(*on)
        if not any(text in answer for text in of_the_host):
            assert verdict(*on, profile=profile) == answer, on
            compared += 1
    assert compared > 1000


@pytest.mark.qemu
@pytest.mark.parametrize("profile", VERSIONS)
def test_names_and_properties_are_those_that_qemu_has(profile, monitor):
    assert [entry.name for entry in TABLES[profile].capabilities] == monitor.names()
    properties = monitor.properties()
    for entry in TABLES[profile].capabilities:
        if entry.property:
            assert entry.property in properties
        else:
            assert not {entry.name, f"x-{entry.name}"} & properties
