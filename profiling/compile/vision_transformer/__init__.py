"""Compiles a training step of the vision transformers that paper A compares NFNets with."""
