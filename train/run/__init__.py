"""Runs the training step: the loop, and everything that surrounds it.

`loop` trains from start to end. Beside it: `resume` and `checkpoints` (where a run goes on),
`faults` (NaN and exploding losses), `evaluation`, `reports`, `progress` and `records`
(metrics.jsonl, the ledger of time, the ids of the images seen), `processes` and `process_watch`
(several hosts), `termination` (SIGTERM), `exit_codes`, `compilation_cache`. This package imports
`train.step`, `train.data`, `train.config` and `train.report`, but no command, and neither
`train.launch` nor `train.sweep`.
"""
