"""Prompts: templates, word lists, the reading of a user's words, and a run's prompt sampler."""
