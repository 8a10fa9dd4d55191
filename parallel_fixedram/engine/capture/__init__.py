"""Ways to make a file hold what RAM was at one instant, a module each, and the time a machine stands still."""
