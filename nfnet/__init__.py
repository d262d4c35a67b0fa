"""Normalizer-free networks: structure, initial values, cost, weights from files, prediction.

May import `kernels`; imports nothing of `train` or `profiling`.
"""
