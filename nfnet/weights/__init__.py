"""Reads and writes weights: released ones, timm's, and checkpoints of this project.

`load.load_weights` reads any of them.
"""
