"""A system call made by another process, of which we get the descriptor: the process is left as it was."""
