import errno
import inspect
import os
import pickle

import pytest

from parallel_fixedram.core import errors
from parallel_fixedram.core.errors import (
    CapabilityError,
    ContentsDiffer,
    DurabilityError,
    FixedRamError,
    FormatError,
    HostError,
    MachineError,
    NoFileError,
    RequestError,
    WorkerError,
    unopened,
)

CLASSES = [value for value in vars(errors).values() if inspect.isclass(value) and issubclass(value, Exception)]


@pytest.mark.parametrize(
    ("kind", "parent", "exit_code"),
    [
        (RequestError, FixedRamError, 2),
        (CapabilityError, RequestError, 2),
        (NoFileError, RequestError, 2),
        (ContentsDiffer, FixedRamError, 1),
        (FormatError, FixedRamError, 3),
        (MachineError, FixedRamError, 4),
        (HostError, FixedRamError, 5),
        (WorkerError, HostError, 5),
        (DurabilityError, HostError, 6),
    ],
)
def test_an_error_stands_in_the_tree_by_who_has_to_act(kind, parent, exit_code):
    assert kind.__base__ is parent
    assert kind.exit_code == exit_code


def test_the_tree_in_the_docstring_names_every_error():
    assert all(kind.__name__ in errors.__doc__ for kind in CLASSES)


def test_a_format_error_says_where_in_hex():
    error = FormatError("expected this, got that", offset=0x100000)
    assert str(error) == error.message == "at 0x100000: expected this, got that"
    assert error.offset == 0x100000


def test_a_format_error_at_the_first_byte_says_so():
    assert str(FormatError("bad", offset=0)) == "at 0x0: bad"


def test_a_format_error_without_a_place_is_its_message():
    assert str(FormatError("bad")) == "bad"
    assert FormatError("bad").offset is None


def test_a_host_error_keeps_the_errno_and_says_it_in_words():
    error = HostError("cannot write 'x'", errno=errno.ENOSPC)
    assert (str(error), error.errno) == ("cannot write 'x': no space left on device", errno.ENOSPC)
    assert str(HostError("cannot write 'x'")) == "cannot write 'x'"


@pytest.mark.parametrize("kind", [HostError, WorkerError, DurabilityError])
def test_an_os_error_is_wrapped_in_the_class_that_was_asked(kind):
    error = kind.from_os("cannot sync 'x'", OSError(errno.EIO, os.strerror(errno.EIO)), hint="look at dmesg")
    assert type(error) is kind
    assert (str(error), error.errno, error.hint) == ("cannot sync 'x': input/output error", errno.EIO, "look at dmesg")


def test_an_os_error_without_a_number_is_wrapped_too():
    assert HostError.from_os("cannot do it", OSError("odd")).errno == 0


@pytest.mark.parametrize("kind", CLASSES)
def test_an_error_survives_the_way_from_a_worker(kind):
    extra = {"offset": 0x2A} if kind is FormatError else {"errno": errno.EIO} if issubclass(kind, HostError) else {}
    error = kind("message", hint="hint", **extra)
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind
    assert (str(copy), copy.message, copy.hint) == (str(error), error.message, "hint")
    assert all(getattr(copy, name) == value for name, value in extra.items())


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        *((number, NoFileError) for number in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP)),
        (errno.ENAMETOOLONG, NoFileError),
        *((number, HostError) for number in (errno.EACCES, errno.EIO, errno.EMFILE, errno.ENOSPC)),
    ],
)
def test_a_wrong_name_is_its_callers_to_mend_and_everything_else_the_hosts(number, kind):
    error = unopened("cannot open 'x'", OSError(number, "No"))
    assert (type(error), error.errno) == (kind, number)
    assert error.message == f"cannot open 'x': {errors.os_message(number)}"


def why_numpy_does_not_load():
    error = ImportError("PLEASE READ THIS\n\nfor advice")
    error.__cause__ = ImportError("libx.so: failed to map segment\nsecond line")
    return error


@pytest.mark.parametrize(
    ("error", "message", "number"),
    [
        (MemoryError("Unable to allocate 1.00 MiB"), "cannot do it: cannot allocate memory", errno.ENOMEM),
        (OSError(errno.EMFILE, "No", "/x"), "cannot do it: '/x': too many open files", errno.EMFILE),
        (OSError(errno.ENOMEM, "No"), "cannot do it: cannot allocate memory", errno.ENOMEM),
        (why_numpy_does_not_load(), "cannot do it: libx.so: failed to map segment", 0),
        (ZeroDivisionError("by zero\nx"), "cannot do it: unexpected ZeroDivisionError: by zero", 0),
    ],
)
def test_what_nobody_expected_is_one_plain_line(error, message, number):
    found = HostError.from_any("cannot do it", error)
    assert (found.message, found.errno) == (message, number)
