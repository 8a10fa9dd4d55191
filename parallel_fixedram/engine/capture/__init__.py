"""Ways to make a file contain RAM as it was at one instant, a module each, and the pause of the machine."""
