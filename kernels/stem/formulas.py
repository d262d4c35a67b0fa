"""Constants that the reference and the kernels of the stem share."""

STRIDES = (2, 1, 1, 2)
"""Strides of the four convolutions."""
FILTER_PIXELS = 3
"""Side of the filters."""
