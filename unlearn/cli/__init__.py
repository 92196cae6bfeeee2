"""What `python -m unlearn` does, one command a file."""
