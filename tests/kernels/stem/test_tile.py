import itertools
import json

import pytest

from kernels.scaled_ws_conv.tile import Tile
from kernels.stem.problem import Problem
from kernels.stem.tile import CHOSEN, choose
from kernels.tpu import VMEM_BYTES, read_tiles
from profiling.compile.tile_worker import tiled_kernels


def test_chosen_tiles_are_the_tiles_of_existing_kernels():
  chosen = read_tiles(CHOSEN, Problem, Tile)
  assert len(chosen) == len(json.loads(CHOSEN.read_text()))
  problems = [kernel.problem for kernel in tiled_kernels("stem", 32)]
  assert set(chosen) == set(itertools.product(problems, ("forward", "backward")))


@pytest.mark.parametrize("images", [16, 32, 48])
def test_every_kernel_has_a_tile_for_both_cores(images):
  for kernel in tiled_kernels("stem", images):
    for direction in ("forward", "backward"):
      blocks = choose(kernel.problem, direction)
      assert blocks.problem.images == images
      assert blocks.tile.cores == 2
      assert blocks.vmem_bytes <= VMEM_BYTES
