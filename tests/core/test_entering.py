"""An entering that fails leaves nothing behind."""

import pytest

from parallel_fixedram.core.entering import undone_if_it_fails


class Lamp:
    """Is on as long as it is entered; ``fails`` with something when it is half there."""

    def __init__(self, fails=None):
        self.on, self.fails, self.told = False, fails, []

    @undone_if_it_fails
    def __enter__(self):
        self.on = True
        if self.fails:
            raise self.fails
        return self

    def __exit__(self, kind, error, traceback):
        self.on = False
        self.told.append(error)


@pytest.mark.parametrize("failure", [ValueError("wrong"), KeyboardInterrupt(), SystemExit(3)])
def test_what_fails_to_be_entered_is_left_once_and_says_why(failure):
    lamp = Lamp(failure)
    with pytest.raises(type(failure)), lamp:
        pytest.fail("it was entered")
    assert (lamp.on, lamp.told) == (False, [failure])


def test_what_is_entered_stays_so_until_it_is_left():
    with Lamp() as lamp:
        assert (lamp.on, lamp.told) == (True, [])
    assert (lamp.on, lamp.told) == (False, [None])
