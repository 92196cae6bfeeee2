"""The command `cpdm`: build a set of works and their imitations, and measure it."""
