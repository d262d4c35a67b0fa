"""Placement on devices: the mesh, and which device holds which parameters and examples."""
