"""The bytes that another process runs for us: encoded right, and seen by nothing but their system calls."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.examples import at_most
from support.machine_code import FLAGS, FREE, RED_ZONE_WORDS, MachineCode, State, jump
from support.puppet import Puppet

from parallel_fixedram.host.injection import stub
from parallel_fixedram.host.injection.stub import Call

WORDS = st.integers(0, (1 << 64) - 1)
FIELDS = st.integers(0, (1 << 31) - 1)
SYS_DUP = 32
PLACE = 3 * 1024

STATES = st.builds(
    State,
    registers=st.tuples(*[WORDS] * len(FREE)),
    flags=st.integers(0, FLAGS).map(lambda flags: flags & FLAGS),
    red_zone=st.tuples(*[WORDS] * RED_ZONE_WORDS),
    sse=st.binary(min_size=256, max_size=256),
)


class TestEncoding:
    @given(number=FIELDS, arguments=st.tuples(FIELDS, FIELDS, FIELDS), rip=st.integers(2, (1 << 47) - 1))
    def test_both_copies_do_the_same_and_go_back_to_where_the_kernel_wants(
        self, number: int, arguments: tuple[int, int, int], rip: int
    ) -> None:
        code = stub.encode(Call(number=number, arguments=arguments), rip)
        assert len(code) == stub.LENGTH
        (first, again), length = (stub.ENTRY, 2 + code[1]), code[1]
        assert code[0] == 0xEB
        one, other = code[first : first + length], code[again : again + length]
        assert one[:-8] == other[:-8]
        assert struct.unpack("<QQ", one[-8:] + other[-8:]) == (rip, rip - 2)
        assert not any(code[again + length :])
        assert struct.unpack_from("<xIxIxIxI", one, 13) == (number, *arguments)

    def test_a_system_call_has_just_been_made_where_it_is_said_to_have_returned(self) -> None:
        code = stub.encode(Call(number=1, arguments=(2, 3, 4)), 1 << 40)
        calls = [at + 2 for at in range(len(code)) if code[at : at + 2] == b"\x0f\x05"]
        assert calls == sorted(stub.AFTER_CALL + stub.AFTER_CLOSE)

    @pytest.mark.parametrize("wrong", [-1, 1 << 31])
    def test_what_does_not_fit_is_refused(self, wrong: int) -> None:
        with pytest.raises(ValueError, match="does not fit"):
            stub.encode(Call(number=1, arguments=(0, wrong, 0)), 1 << 40)


@pytest.fixture(scope="module")
def code() -> MachineCode:
    """A function whose body goes to a stub that lies in the same memory."""
    return MachineCode(bytes(14))


@pytest.fixture(scope="module")
def process(code: MachineCode) -> Iterator[Puppet]:
    with Puppet(code.run) as puppet:
        yield puppet


@pytest.mark.parametrize("entry", [0, stub.ENTRY], ids=["restarted", "interrupted"])
@pytest.mark.parametrize("source", [0, 900], ids=["done", "failed"])
@at_most(15)
@given(state=STATES)
def test_registers_flags_and_red_zone_are_what_they_were_and_no_descriptor_is_left(
    code: MachineCode, process: Puppet, entry: int, source: int, state: State
) -> None:
    before = os.listdir(f"/proc/{process.pid}/fd")
    back = code.after if entry else code.after + 2
    written = stub.encode(Call(number=SYS_DUP, arguments=(source, 0, 0)), back)
    code.memory[PLACE : PLACE + stub.LENGTH] = written
    at = code.body - code.address
    code.memory[at : at + 14] = jump(code.address + PLACE + entry)
    code.give(state)
    assert process.call() == state
    assert os.listdir(f"/proc/{process.pid}/fd") == before
