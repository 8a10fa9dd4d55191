"""Processes: forked and reaped, signals held back, a guardian that outlives us."""
