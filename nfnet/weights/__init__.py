"""Reads and writes weights: the released ones, timm's, and this project's checkpoints.

`load.load_weights` reads all of these.
"""
