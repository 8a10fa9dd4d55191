"""Decides how to write, from what was requested and what writes cost here."""
