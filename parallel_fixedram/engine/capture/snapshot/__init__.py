"""A running machine saved as it was at one instant, T: each page is copied out before its first write after T."""
