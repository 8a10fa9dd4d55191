"""Worker processes, what they are told, and who hears how far they are."""
