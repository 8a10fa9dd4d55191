"""The verbs, one module each: the Python API."""
