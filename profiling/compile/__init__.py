"""Compiles training steps and ops for TPUs that need not be there."""
