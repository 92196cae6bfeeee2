"""Bad files for every reader: python dev.py fuzz."""
