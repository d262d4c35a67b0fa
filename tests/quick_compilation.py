"""Flags with which XLA compiles for a CPU in a fifth of the time, for programs that run seldom.

Most of the time of the tests is compilation. A step of `small_network.TINY` takes 2.4 s of CPU time
with these flags, 5.8 s with the first alone and 11.5 s without (jax 0.10.2).
"""

XLA_FLAGS = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
