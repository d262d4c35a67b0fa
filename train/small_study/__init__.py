"""Studies at the scale of a laptop: four networks and four budgets, on small images.

A `.toml` file, named by its images and, where there are several, its seed, is the plan of what
`python -m train.sweep` pre-trained. The `.csv` file of that name has the results, and its header
says how they were made. docs/scaling_laws.md discusses them.
"""

import pathlib

_FOLDER = pathlib.Path(__file__).parent

PLANS = {path.stem: path for path in sorted(_FOLDER.glob("*.toml"))}
"""The plans of the sweeps."""

RUNS = {path.stem: path for path in sorted(_FOLDER.glob("*.csv"))}
"""All trials, as `train.finetune_sweep` writes them."""
