"""One step of training, and of evaluation, as pure functions: from a state and a batch to the next.

May import `train.config`, `nfnet` and `kernels`; no input pipeline, checkpoint or metrics code.
"""
