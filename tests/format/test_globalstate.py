"""The run state in device sections that all say ``running``."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.streamwriter import Section, device_bytes

from parallel_fixedram.core.errors import FormatError
from parallel_fixedram.format.device_sections import read_device_sections
from parallel_fixedram.format.globalstate import run_state, with_run_state


def body(state, suspended=0):
    """As QEMU 10.0 writes it."""
    return struct.pack(">I32sBB66x", len(state) + 1, state.encode(), 1, suspended)


def sections(*bodies, before=b"timer"):
    return device_bytes(
        [
            Section(name="timer", id=0, body=before),
            *(Section(name="globalstate", id=7, instance=0, version=1, body=each) for each in bodies),
            Section(name="serial", id=9, body=b"serial"),
        ]
    )


@pytest.mark.parametrize(
    "state",
    [
        *("suspended", "paused", "prelaunch", "postmigrate", "shutdown"),
        *("guest-panicked", "internal-error", "io-error", "watchdog"),
    ],
)
def test_nothing_but_the_name_of_the_run_state_changes(state):
    for suspended in (0, 1):
        there = sections(body("running", suspended))
        assert with_run_state(there, state) == sections(body(state, suspended))


def test_of_a_guest_that_ran_nothing_is_even_looked_at():
    assert with_run_state(b"anything", "running") == b"anything"


@pytest.mark.parametrize("state", ["debug", "save-vm", "restore-vm", "colo", "inmigrate", "of the future", "x" * 300])
def test_a_run_state_that_would_end_the_qemu_that_loads_it_becomes_paused(state):
    assert with_run_state(sections(body("running")), state) == sections(body("paused"))


def test_where_there_is_no_such_section_one_is_added_with_an_id_of_its_own():
    added = with_run_state(sections(), "shutdown")
    assert added.startswith(sections())
    *_, last = read_device_sections(added)
    assert (last.name, last.instance_id, last.version_id, last.section_id) == ("globalstate", 0, 1, 10)
    assert added[: -len(struct.pack(">BI", 0, 0))].endswith(body("shutdown"))


@given(st.binary(max_size=40))
def test_what_a_guest_has_put_into_a_device_is_not_taken_for_the_section(forged):
    imitation = device_bytes([Section(name="globalstate", id=7, version=1, body=body("running"))])
    before = forged + imitation + forged
    found = with_run_state(sections(body("running"), before=before), "shutdown")
    assert found == sections(body("shutdown"), before=before)


def test_bytes_that_are_no_sections_are_refused():
    with pytest.raises(FormatError, match="not whole device sections"):
        with_run_state(b"QEVM", "paused")


@pytest.mark.parametrize("state", ["running", "shutdown", "guest-panicked"])
def test_the_run_state_is_read_back_from_the_body_of_its_section(state):
    there = with_run_state(sections(body("running")), state)
    (found,) = [each for each in read_device_sections(there) if each.name == "globalstate"]
    assert there[found.body_offset : found.body_offset + found.body_length] == body(state)
    assert run_state(body(state)) == state
    assert run_state(body(state)[:20]) == run_state(b"") == ""
