"""How many examples hypothesis tries, and what they are made of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

T = TypeVar("T")


def at_most(examples: int) -> settings:
    """A decorator for a test whose examples are dear: so many, or as few as the profile has. They share fixtures.

    With `make soak` ten times as many.
    """
    return settings(
        max_examples=min(examples * 10 if thorough() else examples, settings.default.max_examples),
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


def letters(alphabet: Sequence[str], length: int) -> st.SearchStrategy[str]:
    """So many letters, each drawn by itself; a letter that stands in the alphabet twice comes twice as often."""
    return st.binary(min_size=length, max_size=length).map(
        lambda drawn: "".join(alphabet[byte % len(alphabet)] for byte in drawn)
    )


@st.composite
def stretches(draw: st.DrawFn, length: int) -> str:
    """A picture of so many pages (``support.pictures``): stretches of equal letters."""
    found = ""
    while len(found) < length:
        found += draw(st.sampled_from("-0ABab")) * draw(st.sampled_from((1, 1, 2, 5, 16, 17, 63, 64, 65, 260)))
    return found[:length]


def few_examples() -> bool:
    """Whether this is a run of `make test-fast`: everything is tried, but not everything with everything."""
    return settings.default.max_examples < settings.get_profile("repeatable").max_examples


def thorough() -> bool:
    """Whether this is a run of `make soak`, which takes as long as it takes."""
    return settings.default.max_examples > settings.get_profile("repeatable").max_examples


def some_of(things: Iterable[T], share: int) -> Sequence[T]:
    """All of them, or every so many of them where the profile is one of few examples."""
    return list(things)[:: share if few_examples() else 1]


def in_turn(things: Sequence[T], number: int) -> Sequence[T]:
    """One of these things, by the number of a case, so that all cases have all of them; all with `make soak`."""
    return things if thorough() else [things[number % len(things)]]


def unless_thorough(fewer: Iterable[T], everything: Iterable[T]) -> Sequence[T]:
    """What decides; `make soak` tries the whole of it."""
    return list(everything if thorough() else fewer)
