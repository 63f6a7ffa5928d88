"""One engine a file: from a task to the function to be timed."""
