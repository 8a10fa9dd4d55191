"""Start QEMUs from a file: restore one guest, or clone many.

::

    restore           QEMU -incoming defer            loads the whole stream by itself, into memory of its own
    restore, shared   QEMU on shared memory           our workers fill the memory; QEMU loads the clone stream
    verify --load     QEMU -S -incoming defer         as restore, checked against the file instead of run, and ended
    clone             QEMU on the file's page arrays  nothing is filled, pages are copied on write; the clone stream

Guests that are handed over live on. If anything fails no QEMU is left, and of one that could not start or load only its
log. The verbs ``restore_guest``, ``clone``, ``guests`` and ``verify_by_loading`` put the pieces together.
"""
