"""Studies at the scale of a laptop: four networks and four budgets, on small images.

`STUDY.toml` is the plan of what `python -m train.sweep` pre-trained: on the photographs of clothes
that are in this repository, and on the natural images of CIFAR-10. `STUDY.csv` has the results, and
its header says how they were made. docs/scaling_laws.md discusses them.
"""

import pathlib

_FOLDER = pathlib.Path(__file__).parent

PLANS = {path.stem: path for path in sorted(_FOLDER.glob("*.toml"))}
"""The plans of the sweeps."""

RUNS = {path.stem: path for path in sorted(_FOLDER.glob("*.csv"))}
"""All trials, as `train.finetune_sweep` writes them."""
