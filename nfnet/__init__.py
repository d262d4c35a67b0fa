"""Implements normalizer-free networks: structure, initial values, cost, weights, prediction.

May import `kernels`; imports nothing of `train` or `profiling`.
"""

from nfnet.system.interrupts import end_in_one_line_while_importing

end_in_one_line_while_importing()
