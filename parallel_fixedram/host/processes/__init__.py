"""Processes: forked and buried, signals held back, a guardian that outlives us."""
