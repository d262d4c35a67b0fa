"""The files that a run writes into its workdir as it goes on, and their readers.

`metrics` has metrics.jsonl, `goodput` the ledger of where the time goes, and `id_log` the ids of
the images that were trained on. `bookkeeping` is what the three have in common: it writes such
files as long as that is possible, and sets aside what is not a record. `workdir` explains errors of
writing there, and moves aside what is in the way.
"""
