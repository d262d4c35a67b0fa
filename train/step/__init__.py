"""The training step and the evaluation step, as pure functions of arrays.

This package may import `train.config`, `nfnet` and `kernels`, but no input pipeline, checkpoint or
metrics code.
"""
