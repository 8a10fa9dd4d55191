"""A machine at one instant: the time it stands still, and the jobs that a save does before and in it."""
