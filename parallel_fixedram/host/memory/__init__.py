"""Memory: in files, of other processes, shared with a guest; which pages were touched, and which are in swap."""
