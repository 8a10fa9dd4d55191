"""Moves pages: worker processes and their jobs, the ways to capture a machine at one instant, and how to tune them."""
