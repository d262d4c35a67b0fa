"""Implements normalizer-free networks: structure, initial values, cost, weights, prediction.

May import `kernels`; imports nothing of `train` or `profiling`.
"""
