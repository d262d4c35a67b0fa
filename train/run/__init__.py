"""A run: the loop around the step, with checkpoints, faults, evaluation and processes."""
