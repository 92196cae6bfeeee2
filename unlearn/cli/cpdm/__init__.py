"""The command `cpdm`: draws a model's versions of works and measures how close they are."""
