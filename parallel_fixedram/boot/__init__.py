"""Start QEMUs from a file: restore one guest, or clone many.

::

    restore           QEMU -incoming defer            loads the whole stream by itself, into memory of its own
    restore, shared   QEMU on shared memory           our workers fill the memory; QEMU loads the clone stream
    verify --load     QEMU -S -incoming defer         as restore, held against the file instead of run, and ended
    clone             QEMU on the file's page arrays  nothing is filled, pages are copied on write; the clone stream

The functions take plain values, raise only the errors of ``core.errors``, and hand over guests that live on; if they
fail, no QEMU is left, and of one that could not start or load nothing but its log.
"""

from parallel_fixedram.boot.clone import clone_guests, plan_clone
from parallel_fixedram.boot.guests import list_guests, stop_guests
from parallel_fixedram.boot.load_check import verify_by_loading
from parallel_fixedram.boot.restore import plan_restore, restore_guest

__all__ = [
    "clone_guests",
    "list_guests",
    "plan_clone",
    "plan_restore",
    "restore_guest",
    "stop_guests",
    "verify_by_loading",
]
