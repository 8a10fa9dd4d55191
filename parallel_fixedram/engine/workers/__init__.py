"""Worker processes, their orders, and their progress."""
