"""The built-in guest: a real process that owns RAM and dirties it, for when there is no QEMU at hand."""
