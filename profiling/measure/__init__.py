"""Measures on this machine: training steps, traces, input pipelines, other implementations.

Only commands import it.
"""
