"""Leases: who may write into a folder that several processes see.

`workdir_lease` gives a workdir to one run at a time, and `held` says at each write whether it still
has it. `heartbeat` shows that a holder is alive, in the claims of sweeps (`train.sweep.claim`) too.
"""
