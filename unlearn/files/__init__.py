"""Atomic writing of files, and safe reading of files that may be damaged or hostile."""
