"""Moves pages: worker processes, the jobs they do, the ways to catch a machine at one instant, and how to tune them."""
