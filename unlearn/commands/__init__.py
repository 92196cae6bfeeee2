"""What `python -m unlearn` does, one command a file: erase, apply, export, show."""
