"""What is known about pages, and the jobs that read, test, copy, hash and write them."""
