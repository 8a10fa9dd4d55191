"""What the system leaves us: limits are named, streams tell of their failures, names are printed as they are."""

import errno
import io
import os
import resource

import pytest
from support.cli import refused, run
from support.puppet import Puppet
from support.seccomp import install, refusing

from parallel_fixedram.cli import process_limits, streams
from parallel_fixedram.core.errors import HostError
from parallel_fixedram.host.processes import forked


def limited(which, size):
    """For ``preexec_fn``: as ``ulimit`` does it."""
    return lambda: resource.setrlimit(which, (size, resource.getrlimit(which)[1]))


@pytest.mark.parametrize(
    ("number", "which", "value", "hint"),
    [
        (errno.ENOMEM, resource.RLIMIT_AS, 1 << 36, "the address space of a process is limited to 64.0 GiB here"),
        (errno.EFBIG, resource.RLIMIT_FSIZE, 4096, "the length of a file is limited to 4.0 KiB here (ulimit -f)"),
        (errno.EMFILE, resource.RLIMIT_NOFILE, 9, "the number of open files is limited to 9 here (ulimit -n)"),
        (errno.EAGAIN, resource.RLIMIT_NPROC, 5, "the number of processes is limited to 5 here (ulimit -u)"),
    ],
)
def test_a_failure_names_the_limit_that_it_may_come_from(number, which, value, hint):
    with Puppet(process_limits.limit_hint, first=limited(which, value)) as process:
        assert process.call(number).startswith(hint)
        assert process.call(errno.EIO) == ""


@pytest.mark.parametrize(
    ("number", "which"), [(errno.ENOMEM, resource.RLIMIT_AS), (errno.EFBIG, resource.RLIMIT_FSIZE)]
)
def test_a_limit_that_is_not_set_is_not_named(number, which):
    if resource.getrlimit(which)[1] != resource.RLIM_INFINITY:
        pytest.skip("these tests run under that limit themselves")
    with Puppet(process_limits.limit_hint, first=limited(which, resource.RLIM_INFINITY)) as process:
        assert process.call(number) == ""


def test_too_little_address_space_to_load_what_is_needed_is_said_before_that_is_tried(tmp_path):
    small = limited(resource.RLIMIT_AS, 80 << 20)
    refused(run("verify", tmp_path, preexec_fn=small), 5, "the address space is limited to 80.0 MiB, ", "ulimit -v")
    assert run("save", "--help", preexec_fn=small).code == 0


def test_a_guest_that_does_not_fit_into_the_address_space_is_refused_with_the_limit(tmp_path):
    result = run(
        "save",
        tmp_path / "new.mr",
        "--guest",
        "zero,size=4GiB",
        preexec_fn=limited(resource.RLIMIT_AS, 1 << 30),
    )
    refused(result, 5, "failed: cannot allocate memory\n", "the address space of a process is limited to 1.0 GiB here")
    assert os.listdir(tmp_path) == []


def test_a_stream_that_fails_says_that_it_was_the_stream():
    class Failing(io.StringIO):
        error = OSError(errno.ENOSPC, "No space")

        def write(self, _text):
            raise self.error

        def flush(self):
            raise self.error

    stream = streams.Output(Failing())
    for act in (lambda: stream.write("x"), stream.flush, lambda: print("x", file=stream)):
        with pytest.raises(HostError, match="cannot write to stdout: no space left on device"):
            act()
    Failing.error = BrokenPipeError(errno.EPIPE, "enough")
    with pytest.raises(BrokenPipeError):
        stream.write("x")


@pytest.mark.parametrize(
    ("encoding", "text", "printed"),
    [
        ("utf-8", "a\udcff\udc80é.mr", b"a\xff\x80\xc3\xa9.mr"),
        ("ascii", "a\udcff é \u20ac", b"a\xff \\xe9 \\u20ac"),
        ("utf-8", "\ud800", b"\\ud800"),
    ],
)
def test_a_name_is_printed_as_its_bytes_and_what_a_terminal_has_not_as_an_escape(encoding, text, printed):
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    streams.print_any_name(out)
    print(text, end="", flush=True, file=out)
    assert out.buffer.getvalue() == printed


@pytest.mark.parametrize("proc", [True, False])
def test_a_process_closes_what_it_does_not_need_also_where_there_is_no_proc(proc):
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            if not proc:
                install(refusing(errno.ENOENT, "openat"))
            forked.close_others({0, 1, 2, theirs})
            try:
                os.fstat(ours)
            except OSError:
                os.write(theirs, b"closed")
        finally:
            os._exit(0)
    os.close(theirs)
    assert os.read(ours, 10) == b"closed"
    os.close(ours)
    os.waitpid(pid, 0)
