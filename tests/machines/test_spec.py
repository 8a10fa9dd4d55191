import json
from dataclasses import FrozenInstanceError

import pytest

from parallel_fixedram.core.errors import RequestError
from parallel_fixedram.core.units import GIB, MIB
from parallel_fixedram.machines.builtin.spec import GuestSpec, Workload


@pytest.mark.parametrize("workload", Workload)
def test_a_workload_alone_is_a_guest_of_one_gibibyte_with_seed_0(workload: Workload) -> None:
    assert GuestSpec.parse(workload.value) == GuestSpec(workload=workload, size=GIB, seed=0)


def test_every_key_can_be_given_in_any_order() -> None:
    assert GuestSpec.parse("hot,rate=200MiB,steps=9,fraction=0.25,seed=7,size=64M") == GuestSpec(
        workload=Workload.HOT, size=64 * MIB, seed=7, fraction=0.25, steps=9, rate=200 * MIB
    )


def test_spaces_around_the_parts_do_not_matter() -> None:
    assert GuestSpec.parse(" text , seed=1 ") == GuestSpec(workload=Workload.TEXT, seed=1)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "unknown guest workload ''"),
        ("size=1GiB", "unknown guest workload 'size=1GiB', expected one of zero, dense, random, hot, sweep, text"),
        ("Dense", "unknown guest workload 'Dense'"),
        ("dense,", "unknown guest key ''"),
        ("dense,sead=1", "unknown guest key 'sead', expected one of size, seed, fraction, steps, rate"),
        ("dense,seed", "guest key 'seed' needs a value, as in seed=7"),
        ("dense,size=", "guest key 'size' needs a value, as in size=1GiB"),
        ("dense,seed=1,seed=2", "guest key 'seed' is given twice"),
        ("dense,size=big", "not a size: 'big'"),
        ("dense,size=0", "guest size must be a positive multiple of 4096 bytes, got 0"),
        ("dense,size=4097", "guest size must be a positive multiple of 4096 bytes, got 4097"),
        ("dense,seed=x", "not a whole number: 'x'"),
        ("dense,seed=-1", "guest seed must lie between 0 and 2\\*\\*64 - 1, got -1"),
        ("dense,seed=18446744073709551616", "guest seed must lie between"),
        ("dense,fraction=half", "not a number: 'half'"),
        ("dense,fraction=1.01", "guest fraction must lie between 0 and 1, got 1.01"),
        ("dense,fraction=nan", "guest fraction must lie between 0 and 1, got nan"),
        ("dense,steps=-1", "guest steps must not be negative, got -1"),
        ("dense,rate=fast", "not a size: 'fast'"),
    ],
)
def test_a_wrong_specification_is_refused_in_one_line(text: str, complaint: str) -> None:
    with pytest.raises(RequestError, match=complaint) as caught:
        GuestSpec.parse(text)
    assert "\n" not in caught.value.message


def test_a_negative_rate_is_refused() -> None:
    with pytest.raises(RequestError, match="rate must not be negative"):
        GuestSpec(workload=Workload.HOT, rate=-1)


@pytest.mark.parametrize(
    ("text", "written_pages"),
    [
        ("zero", 0),
        ("zero,fraction=1", 0),
        ("dense", 1000),
        ("dense,fraction=0.3", 300),
        ("dense,fraction=0", 0),
        ("random", 500),
        ("random,fraction=1", 1000),
        ("hot,fraction=0.0014", 1),
    ],
)
def test_the_fraction_says_how_many_pages_are_written(text: str, written_pages: int) -> None:
    workload, _, rest = text.partition(",")
    spec = GuestSpec.parse(",".join(filter(None, [workload, "size=4000KiB", rest])))
    assert (spec.pages, spec.written_pages) == (1000, written_pages)


def test_a_specification_goes_into_a_report_as_plain_json() -> None:
    spec = GuestSpec.parse("random,size=1MiB,seed=3")
    assert json.loads(json.dumps(spec.to_json())) == {
        "workload": "random",
        "size": MIB,
        "seed": 3,
        "fraction": None,
        "steps": None,
        "rate": 0,
        "written_pages": 128,
    }


def test_a_specification_cannot_be_changed() -> None:
    spec = GuestSpec(workload=Workload.ZERO)
    with pytest.raises(FrozenInstanceError):
        spec.size = 4096
