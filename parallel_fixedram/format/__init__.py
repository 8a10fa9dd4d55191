"""What is in the files: the migration stream, mapped-ram, our trailer. Pure: bytes in, values out, and back."""
