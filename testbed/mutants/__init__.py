"""Faults that are put into the science on purpose, to see if a test notices each of them."""
