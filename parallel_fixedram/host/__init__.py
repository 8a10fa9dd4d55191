"""The operating system: files, maps, facts. Knows bytes and offsets, nothing of QEMU."""
