"""Defines a network that compiles in a fraction of P0's time, and a configuration that trains it.

Commands know it through the configuration, --config=tests/train/small_network.py. Commands that
read no configuration are started by

    python -m tests.train.small_network PROGRAM ARGUMENTS...
"""

import dataclasses
import runpy
import sys

from nfnet import variants
from train.config.experiment import Experiment
from train.configs import demo_pretrain

# P0 without its last stages. There are transitions with and without stride, and two blocks that
# "scan" takes together.
SMALL = dataclasses.replace(
  variants.get_variant("P0"),
  name="small",
  stage_channels=(32, 64, 64, 64),
  stage_depths=(1, 3, 0, 0),
)
# One block of each kind.
TINY = dataclasses.replace(SMALL, name="tiny", stage_depths=(1, 1, 0, 0))


def register() -> None:
  """Adds the networks to those that are known by their names."""
  variants.VARIANTS.update({variant.name: variant for variant in (SMALL, TINY)})


def experiment() -> Experiment:
  """Returns the demo's pre-training, of the tiny network and on 16 px images."""
  register()
  demo = demo_pretrain.experiment()
  return dataclasses.replace(
    demo,
    name="test",
    model=dataclasses.replace(demo.model, variant=TINY.name),
    data=dataclasses.replace(
      demo.data, evaluation_batch_size=40, train_pixels=16, evaluation_pixels=16
    ),
  )


if __name__ == "__main__":
  register()
  del sys.argv[0]
  runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
