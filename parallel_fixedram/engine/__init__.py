"""Moves pages: worker processes, and what save, restore, verify and compare do with them."""
