"""Faults put into the science on purpose: does a test notice each of them?"""
