"""Hashes: which pages changed since they were noted, as a comparison of their bytes finds it."""

import os

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from support.examples import stretches
from support.pictures import PAGE, content

from parallel_fixedram.core.bitmap import Bits
from parallel_fixedram.core.protocols import Pages
from parallel_fixedram.core.ramblock import RAMBlock
from parallel_fixedram.engine.pages.changes import Hashes

BLOCKS = [RAMBlock(idstr="a", used_length=65 * PAGE), RAMBlock(idstr="b", used_length=3 * PAGE)]


def ram_of(drawn: str) -> Pages:
    return np.frombuffer(content(drawn), np.uint64).reshape(len(drawn), -1)


def bits_of(drawn: str) -> Bits:
    return np.array([letter != "-" for letter in drawn], np.uint8)


def test_nobody_else_knows_the_hashes() -> None:
    """Two saves hash the same page differently, so that a guest cannot look for two pages with the same one."""
    every = np.arange(3)
    one, other = (Hashes(BLOCKS).hashes_of(ram_of("AB0"), every) for _ in range(2))
    assert one.shape == (3, 2)
    assert not (one == other).all(axis=1).any()
    assert one.any(axis=1).all()


def test_pages_are_hashed_in_the_order_they_are_asked_for() -> None:
    hashes = Hashes(BLOCKS)
    found = hashes.hashes_of(ram_of("ABA"), np.array([2, 1, 0]))
    assert found[0].tolist() == found[2].tolist() != found[1].tolist()
    assert hashes.hashes_of(ram_of("AAA"), np.empty(0, np.int64)).shape == (0, 2)


@given(st.data(), st.sampled_from(((0, 1), (0, 55), (64, 1))))
def test_what_changed_is_what_a_comparison_finds(data: st.DataObject, place: tuple[int, int]) -> None:
    first, length = place
    before, after, forgotten, asked = (data.draw(stretches(length)) for _ in range(4))
    hashes = Hashes(BLOCKS)
    hashes.note(0, first, ram_of(before), bits_of(before))
    hashes.forget(0, first, bits_of(forgotten))
    held = bits_of(before) & (bits_of(forgotten) ^ 1)
    assert hashes.held(0, first, length).tolist() == held.tolist()
    found = hashes.changed(0, first, ram_of(after), held & bits_of(asked))
    naive = [
        bool(there) and letter != "-" and content(old) != content(new)
        for old, new, there, letter in zip(before, after, held, asked, strict=True)
    ]
    assert found.tolist() == [int(each) for each in naive]
    assert hashes.held(0, 64 - first, 1).tolist() == hashes.held(1, 0, 1).tolist() == [0]


def test_what_is_noted_later_leaves_what_was_noted_before() -> None:
    hashes = Hashes(BLOCKS)
    hashes.note(1, 0, ram_of("AAA"), bits_of("x--"))
    hashes.note(1, 0, ram_of("BBB"), bits_of("-x-"))
    assert hashes.held(1, 0, 3).tolist() == [1, 1, 0]
    assert hashes.changed(1, 0, ram_of("AAA"), bits_of("xx-")).tolist() == [0, 1, 0]


def test_what_is_known_is_shared_with_forks() -> None:
    hashes = Hashes(BLOCKS)
    pid = os.fork()
    if pid == 0:
        hashes.note(1, 0, ram_of("AAA"), bits_of("--x"))
        os._exit(0)
    os.waitpid(pid, 0)
    assert hashes.held(1, 0, 3).tolist() == [0, 0, 1]
    assert not hashes.changed(1, 0, ram_of("AAA"), bits_of("--x")).any()
