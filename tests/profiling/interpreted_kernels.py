"""Runs a command on CPUs with interpreted kernels, and a network that is wide enough for them.

python -m tests.profiling.interpreted_kernels PROGRAM ARGUMENTS...
"""

import functools
import runpy
import sys

import jax
from jax.experimental.pallas import tpu as pltpu

from nfnet import variants
from nfnet.variants import Variant
from tests.lowering import as_on_a_tpu

# One block, whose channels fill the lanes.
WIDE = Variant(
  name="wide",
  stage_channels=(256, 256, 256, 256),
  stage_depths=(1, 0, 0, 0),
  dropout_rate=0.0,
  train_pixels=32,
  test_pixels=32,
  randaugment_magnitude=0,
)


if __name__ == "__main__":
  variants.VARIANTS[WIDE.name] = WIDE
  jax.lax.platform_dependent = as_on_a_tpu
  # Interpreted, a kernel has no types that say over which devices its values vary.
  jax.shard_map = functools.partial(jax.shard_map, check_vma=False)
  del sys.argv[0]
  with pltpu.force_tpu_interpret_mode(True):
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
