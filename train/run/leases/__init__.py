"""Leases: who may write into a folder that several processes see.

`workdir_lease` gives a workdir to one run at a time, with `bucket_lease` if it is in a bucket, and
`held` says at each write whether the run still has it. `heartbeat` shows that a holder is alive, in
the claims of sweeps (`train.sweep.claim`) too.
"""
