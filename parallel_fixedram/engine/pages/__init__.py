"""What is known of pages, and the jobs that read, test, copy, hash and write them."""
