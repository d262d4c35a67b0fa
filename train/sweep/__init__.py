"""Grids of pre-training runs over variant, epoch budget and learning rate.

`python -m train.sweep` (`__main__.py`) is one worker; workers know of each other by a shared folder
alone. `plan.py` is what is to run, `trial.py` one run of it, `folder.py` who runs it (the states of
all trials). `worker.py` runs trials, each in a process of `trial_process.py`. `results.py` is what
comes out, `table.py` what a person sees. Which rates to try is decided by
`train.sweep.learning_rate_search`.
"""
