"""Attacks on an erasure: each looks for an input that brings the concept back."""
