"""Files that a run writes into its workdir as it goes on, and their readers.

`metrics` is metrics.jsonl, `goodput` the ledger of where the time goes, `id_log` the ids of the
images that were trained on.
"""
