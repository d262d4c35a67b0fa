"""Gradients of a device's examples: by segment, in parts, or at nearby worst parameters."""
