"""Save a virtual machine's RAM at fixed file offsets with parallel workers; restore, verify and compare it."""
