"""Convolution with scaled weight standardization (paper B, section 2)."""
