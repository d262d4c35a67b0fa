"""The checkpoints of a run: `manager` saves and restores, `damage` verifies and sets aside."""
