"""The command `sweep`: many erasures from one plan, on many workers, gathered into one table."""
