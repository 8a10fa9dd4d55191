"""File formats: the migration stream, mapped-ram, our trailer. Pure: bytes in, values out, and back."""
