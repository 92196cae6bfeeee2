"""The benchmark of speed: python dev.py perf."""
