"""Machines whose RAM is saved: a QEMU, the built-in guest, shared memory given by path."""
