"""Files of weights: released ones, checkpoints of this project, and their parameter names."""
