"""Experiments: one file each, with its command, expected cost and expected result."""
