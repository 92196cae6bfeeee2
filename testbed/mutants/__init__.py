"""Puts faults into the code on purpose, and checks that a test notices each."""
