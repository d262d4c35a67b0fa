"""The four 3x3 convolutions before the first stage (paper B, section 2)."""
