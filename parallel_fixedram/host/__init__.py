"""The operating system: files, memory, processes, facts. It knows bytes and offsets, and nothing about QEMU."""
