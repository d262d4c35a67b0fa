"""Squeeze-excite and the residual addition that ends a block (paper B, appendix C)."""
