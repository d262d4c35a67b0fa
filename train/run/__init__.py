"""Runs the training step: the loop, and everything that surrounds it.

`loop` trains from start to end. Beside it are `resume` and `checkpoints` (where a run continues),
`faults` (NaN and exploding losses), `evaluation`, `tally`, `reports`, `progress` and `records`
(metrics.jsonl, the ledger of time, the ids of the images seen), `processes` and `process_watch`
(several hosts), `termination` (SIGTERM), `initial_weights`, `linear_probe`, `exit_codes` and
`compilation_cache`. This package imports `train.step`, `train.data`, `train.config` and
`train.report`, but no command, and neither `train.launch` nor `train.sweep`.
"""
