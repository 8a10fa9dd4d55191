"""Files: written and read at absolute offsets, past the page cache or through it, and published when complete."""
