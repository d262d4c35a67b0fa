"""Training: data, step, loop, checkpoints, and the commands that run them."""
