"""Files: read and written at absolute offsets, through the page cache or bypassing it, and published when complete."""
