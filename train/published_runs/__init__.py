"""Tables of runs that others have published, as `train.scaling.run_table` reads them.

The runs are from paper A (https://arxiv.org/abs/2310.16764). Each file says how its numbers were
obtained.
"""

import pathlib

PAPER_A_NFNETS = pathlib.Path(__file__).with_name("paper_a_nfnets.csv")
"""36 NFNets pre-trained on JFT-4B: core-hours, held-out loss, learning rate, error on ImageNet."""

PAPER_A_FINETUNED = pathlib.Path(__file__).with_name("paper_a_finetuned.csv")
"""Three ViTs and the best NFNet after fine-tuning on ImageNet, with which paper A compares."""
