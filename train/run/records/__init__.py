"""The files that a run writes into its workdir as it goes on, and their readers.

`metrics` has metrics.jsonl, `goodput` the ledger of where the time goes, and `id_log` the ids of
the images that were trained on. `workdir` explains errors of writing there.
"""
