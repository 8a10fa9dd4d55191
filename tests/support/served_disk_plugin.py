"""What nbdkit serves as a block device for the tests: a file whose writes are logged, and fail when it is told so.

It is run by nbdkit's Python, one request at a time; ``support/served_disk.py`` starts it.

Parameters:
    image: the file.
    log: gets each write and flush when it is done, and before that is answered: offset, length (both 64 bits, flushes
        have FLUSHED as their offset), bytes.
    orders: a folder; a file ``pread``, ``pwrite`` or ``flush`` in it makes such requests fail. It holds the errno, and
        how many times they are to fail; 0 is for good.
"""

import errno
import os
import struct

API_VERSION = 2
HEAD = struct.Struct("<QQ")
FLUSHED = (1 << 64) - 1

given = {}


def config(key, value):
    given[key] = value


def open(_readonly):
    image = os.open(given["image"], os.O_RDWR)
    log = os.open(given["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    return image, log


def get_size(handle):
    return os.fstat(handle[0]).st_size


def can_flush(_handle):
    return True


def pread(handle, into, offset, _flags):
    obey("pread")
    if os.preadv(handle[0], [into], offset) != len(into):
        fail(errno.EIO)


def pwrite(handle, data, offset, _flags):
    obey("pwrite")
    try:
        while data:
            done = os.pwrite(handle[0], data, offset)
            os.write(handle[1], HEAD.pack(offset, done) + bytes(data[:done]))
            data, offset = data[done:], offset + done
    except OSError as error:
        fail(error.errno)


def flush(handle, _flags):
    obey("flush")
    os.write(handle[1], HEAD.pack(FLUSHED, 0))


def obey(request):
    path = os.path.join(given["orders"], request)
    try:
        fd = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return
    try:
        number, times = map(int, os.pread(fd, 64, 0).split())
        if times == 1:
            os.unlink(path)
        elif times:
            os.pwrite(fd, b"%d %d " % (number, times - 1), 0)
    finally:
        os.close(fd)
    fail(number)


def fail(number):
    import nbdkit  # those who read the log do without

    nbdkit.set_error(number)
    raise OSError(number, os.strerror(number))
