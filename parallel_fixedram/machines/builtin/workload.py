"""Contents of the guest's RAM: a pure function of its specification and the number of steps it has done.

Booting fills the pages the workload asks for, then each step rewrites up to 256 of them::

    GuestSpec --> Program.boot(), Program.step(ram, 1), Program.step(ram, 2), ...

The guest's process and a test's twin run the same program, one on shared memory, one on an array.

A page is a function of the seed, its number, and the step that wrote it last; the pages of a step are a function of the
seed and the step. Both come from one integer hash, not from numpy's distributions, which may change between versions.
Word 0 of a written page is its page number and word 1 its step, so that a misplaced or stale page is obvious in a hex
dump; all other words depend on them too. Memory use does not grow with the size of RAM.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from parallel_fixedram.core.protocols import Pages
from parallel_fixedram.core.ramblock import TARGET_PAGE_SIZE
from parallel_fixedram.machines.builtin.spec import GuestSpec, Workload

BATCH_PAGES = 256
"""Most pages written at a time, and by one step: 1 MiB fits into the cache and keeps pauses short."""

PAGE_WORDS = TARGET_PAGE_SIZE // 8

_LINE_WORDS = 8  # 64 bytes of text
_PAGE_LINES = PAGE_WORDS // _LINE_WORDS
_NOISE_ROWS = 256
_TEXT_LINES = 4096
_HOT_SHARE = 20  # one page in so many is hot
_HOT_WRITES = 9  # of ten

_CONTENT, _CHOICE, _PLACES, _HOT_PLACES, _FILLER = range(1, 6)  # independent streams of numbers

_PROSE = (
    "the page of a guest is written to its own place in file and every worker keeps one offset for each word while "
    "memory changes again before last round ends; nothing moves twice unless somebody asks: 0 1 2 3 42 4096 true false "
    "null error warning info request answer client server kernel driver buffer cache table index column value"
)

_Numbers = NDArray[np.uint64]
Indices = NDArray[np.int64]


class Program:
    """The program that a guest of this specification runs.

    Args:
        spec: the guest.
    """

    def __init__(self, spec: GuestSpec) -> None:
        self._spec = spec
        self._batch = np.empty((BATCH_PAGES, PAGE_WORDS), np.uint64)
        self._filler = self._text() if spec.workload is Workload.TEXT else self._noise()

    def boot(self) -> Iterator[tuple[Indices, Pages]]:
        """What booting writes into RAM that was zero before, piece by piece.

        Yields:
            Page numbers, and the contents of these pages, shape (pages, 512), valid until the next piece.
        """
        for first in range(0, self._spec.written_pages, BATCH_PAGES):
            after = min(first + BATCH_PAGES, self._spec.written_pages)
            pages = self._places(np.arange(first, after, dtype=np.uint64))
            yield pages, self._contents(pages, 0)

    def step(self, ram: Pages, number: int) -> Indices:
        """Do step ``number``; the first is 1.

        Returns:
            The pages written, ascending, without repetition.
        """
        pages = np.unique(self._places(self._choose(number)))
        ram[pages] = self._contents(pages, number)
        return pages

    def _choose(self, step: int) -> _Numbers:
        """Which of the written pages the step rewrites, as indices from 0 to ``written_pages`` - 1; some may repeat."""
        written = self._spec.written_pages
        count = min(BATCH_PAGES, written)
        if not written:
            return np.empty(0, np.uint64)
        if self._spec.workload is Workload.SWEEP:
            first = (step - 1) * count % written
            return np.arange(first, first + count, dtype=np.uint64) % np.uint64(written)
        draws = self._draw(_CHOICE, step, count)
        anywhere = draws % np.uint64(written)
        if self._spec.workload is not Workload.HOT:
            return anywhere
        hot_pages = -(-written // _HOT_SHARE)
        hot = scatter(draws % np.uint64(hot_pages), written, self._stream(_HOT_PLACES))
        # whether a write is a hot one is decided by other bits than which page it goes to
        return np.where((draws >> np.uint64(32)) % np.uint64(10) < _HOT_WRITES, hot, anywhere)

    def _places(self, indices: _Numbers) -> Indices:
        """The pages with these indices among the written ones."""
        if self._spec.workload is Workload.RANDOM:
            indices = scatter(indices, self._spec.pages, self._stream(_PLACES))
        return indices.astype(np.int64)

    def _contents(self, pages: Indices, step: int) -> Pages:
        """What a step writes into pages, shape (pages, 512), valid until the next call."""
        batch = self._batch[: len(pages)]
        keys = mix(pages.astype(np.uint64) + self._stream(_CONTENT, step))
        if self._spec.workload is Workload.TEXT:
            lines: _Numbers = np.arange(_PAGE_LINES, dtype=np.uint64)
            picks = (mix(keys[:, None] + lines) % np.uint64(_TEXT_LINES)).astype(np.intp)
            np.take(self._filler, picks, axis=0, out=batch.reshape(-1, _PAGE_LINES, _LINE_WORDS), mode="clip")
        else:
            rows = (keys % np.uint64(_NOISE_ROWS)).astype(np.intp)
            np.take(self._filler, rows, axis=0, out=batch, mode="clip")
            batch ^= keys[:, None]
        batch[:, 0] = pages
        batch[:, 1] = step
        return batch

    def _stream(self, purpose: int, step: int = 0) -> _Numbers:
        """The start of the random stream for this purpose and step, shape (1,)."""
        seed = np.array([self._spec.seed], np.uint64)
        return mix(mix(seed + np.uint64(purpose)) + np.uint64(step))

    def _draw(self, purpose: int, step: int, count: int) -> _Numbers:
        numbers: _Numbers = np.arange(count, dtype=np.uint64)
        return mix(numbers + self._stream(purpose, step))

    def _noise(self) -> _Numbers:
        """Random words, shape (rows, 512): a page is one of these rows, each word XORed with the page's key."""
        return self._draw(_FILLER, 0, _NOISE_ROWS * PAGE_WORDS).reshape(_NOISE_ROWS, PAGE_WORDS)

    def _text(self) -> _Numbers:
        """Lines of text, shape (lines, 8): a page is made of 64 of them."""
        words = _PROSE.split()
        letters = _TEXT_LINES * _LINE_WORDS * 8
        picks = self._draw(_FILLER, 0, letters // 4) % np.uint64(len(words))
        text = " ".join([words[pick] for pick in picks.tolist()]).encode("ascii")
        return np.frombuffer(text[:letters], np.uint64).reshape(_TEXT_LINES, _LINE_WORDS)


def render(spec: GuestSpec, steps: int = 0) -> Pages:
    """The guest's RAM after booting and ``steps`` steps, shape (pages, 512), in private memory."""
    ram = np.zeros((spec.pages, PAGE_WORDS), np.uint64)
    program = Program(spec)
    for pages, contents in program.boot():
        ram[pages] = contents
    for number in range(1, steps + 1):
        program.step(ram, number)
    return ram


def mix(numbers: _Numbers) -> _Numbers:
    """Scramble each number into an unrelated one, one to one (one round of splitmix64)."""
    numbers = numbers + np.uint64(0x9E3779B97F4A7C15)
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))


def scatter(indices: _Numbers, size: int, key: _Numbers) -> _Numbers:
    """Shuffle without a table: a permutation of 0 ... ``size`` - 1 that depends on ``key``.

    It permutes all numbers with as many bits as ``size`` - 1; where a result is too large, it is permuted again until
    it is not (cycle walking).

    Args:
        indices: numbers below ``size``.
        size: how many numbers there are.
        key: shape (1,).
    """
    bits = max((size - 1).bit_length(), 1)
    places = _shuffle_bits(indices, bits, key)
    while len(outside := np.flatnonzero(places >= size)):
        places[outside] = _shuffle_bits(places[outside], bits, key)
    return places


def _shuffle_bits(numbers: _Numbers, bits: int, key: _Numbers) -> _Numbers:
    """A permutation of the numbers with ``bits`` bits: multiplying by an odd number is one, and so is folding down
    the high bits."""
    mask, half = np.uint64((1 << bits) - 1), np.uint64((bits + 1) // 2)
    for turn in range(4):
        multiplier = mix(key + np.uint64(turn)) | np.uint64(1)
        numbers = (numbers * multiplier + key) & mask
        numbers = numbers ^ (numbers >> half)
    return numbers
