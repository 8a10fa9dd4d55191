"""Make another process do one system call and take the descriptor that it returns; the process is left as it was."""
