"""One module a verb: its jobs, and the part of the coordinator."""
