"""A study at the scale of a laptop: four networks, four budgets, on embedded photographs.

`plan.toml` is what was pre-trained (`python -m train.sweep`), `runs.csv` what came out, each trial
fine-tuned on 200 digits with two seeds (`python -m train.finetune_sweep --all_trials`). What it
says is in docs/scaling_laws.md.
"""

import pathlib

PLAN = pathlib.Path(__file__).with_name("plan.toml")
"""Of the sweep."""

RUNS = pathlib.Path(__file__).with_name("runs.csv")
"""All trials, as `train.finetune_sweep` writes them."""
