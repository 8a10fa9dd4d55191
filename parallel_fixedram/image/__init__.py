"""A mapped-ram file as a whole: made, opened, restored, compared, verified, prepared for clones."""
