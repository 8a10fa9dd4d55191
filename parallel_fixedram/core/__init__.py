"""Pure values and rules: no operating system, no memory maps, no time, no processes, no logging."""
