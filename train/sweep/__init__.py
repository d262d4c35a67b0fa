"""Grids of pre-training runs over variant, epoch budget and learning rate.

`python -m train.sweep` (`__main__`) is one worker; workers know about each other only through a
shared folder. `plan` defines what to run, and `trial` one of the runs. `folder` keeps the state of
every trial, `claim` takes a trial to run it, and `dead_workers` finds trials whose worker has died.
`worker` ties these together: it runs trials, each in a process of `trial_process`, until all are
done or a signal tells it to end (`stop`). `learning_rate_search` chooses the next learning rates.
`results` writes results.csv, `trial_table` shows the trials, and `finetuning` fine-tunes the
pre-trained networks.

Of the rest of `train`, these modules import `report`, `config`, `data`, `step` and `run`.
"""
