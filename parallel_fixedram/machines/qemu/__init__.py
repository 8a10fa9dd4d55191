"""A running QEMU, reached through its QMP socket."""
