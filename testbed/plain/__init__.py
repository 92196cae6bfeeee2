"""The published loops, written plainly: what the pack's methods are compared with in speed.

Each is what its authors' code does, in float32, on a diffusers pipeline whose weights are trained
in place. Tests hold them against the pack's paper modes: the same draws give the same change.
"""
