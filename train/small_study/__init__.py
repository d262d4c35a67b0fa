"""A study at the scale of a laptop: four networks and four budgets, on the demo's photographs.

`plan.toml` defines what was pre-trained by `python -m train.sweep`. `runs.csv` has the results:
each trial was fine-tuned on 200 digits with two seeds by `python -m train.finetune_sweep
--all_trials`. docs/scaling_laws.md discusses them.
"""

import pathlib

PLAN = pathlib.Path(__file__).with_name("plan.toml")
"""The plan of the sweep."""

RUNS = pathlib.Path(__file__).with_name("runs.csv")
"""All trials, as `train.finetune_sweep` writes them."""
