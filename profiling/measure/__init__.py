"""Measures on this machine: training steps, traces, input pipelines, other implementations.

May import `compiler_text` and `estimate`; only commands import it.
"""
