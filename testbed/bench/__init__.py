"""The benchmark of erasures: python dev.py bench."""
