"""Scaling laws fitted to tables of runs, and the choice of a checkpoint to fine-tune."""
