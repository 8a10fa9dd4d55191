"""How to write: what was asked for, what writes cost here, and the decision."""
