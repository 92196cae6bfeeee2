"""Prompts: templates, word lists, what a user typed, and the sampler of a run."""
