"""Memory: of files, of other processes, shared with a guest; what of it was touched, and what is in swap."""
