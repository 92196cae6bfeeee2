"""The erasing methods, one published method a file. No method imports another."""
