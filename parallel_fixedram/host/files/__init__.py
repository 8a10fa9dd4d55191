"""Files: written and read at absolute offsets, bypassing the page cache or through it, and published when complete."""
