import dataclasses
import json

import pytest

from kernels.se_residual.problem import Problem
from kernels.se_residual.tile import CHOSEN, Blocks, Tile, candidates, choose
from kernels.tpu import VMEM_BYTES, read_tiles
from profiling.compile.tile_worker import sweeps


def problem(height, width, images, channels, itemsize=2):
  return Problem(height=height, width=width, images=images, channels=channels, itemsize=itemsize)


PROBLEM = problem(14, 14, 32, 1536)


def test_blocks_by_hand():
  tile = Tile(rows=2, images=16, channels=768)
  blocks = Blocks(PROBLEM, "forward", tile)
  assert blocks.grid == (2, 2, 7)
  assert blocks.wide_bytes == 2 * 14 * 16 * 768 * 2
  # The branch, the shortcut and the result; the scale.
  assert blocks.vmem_bytes == 2 * (3 * blocks.wide_bytes + 16 * 768 * 4)
  # The cotangent and the branch; two kinds of sums.
  backward = Blocks(PROBLEM, "backward", tile)
  assert backward.vmem_bytes == 2 * (2 * blocks.wide_bytes + 2 * 16 * 768 * 4)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (dict(rows=3), "rows: 14 is not a multiple of 3"),
    (dict(rows=0), "rows: 14 is not a multiple of 0"),
    (dict(images=24), "images: 32 is not a multiple of 24"),
    (dict(images=8), "images: 8 is not a multiple of 16"),
    (dict(channels=640), "channels: 1536 is not a multiple of 640"),
    (dict(channels=192), "channels: 192 is not a multiple of 128"),
    (dict(rows=14, images=32), "bytes of VMEM are more than"),
  ],
)
def test_tiles_that_do_not_fit_are_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    Blocks(PROBLEM, "forward", Tile(**dict(rows=2, images=16, channels=1536) | changes))


@pytest.mark.parametrize(
  "shape", [(14, 14, 32, 1536), (7, 7, 16, 384), (5, 3, 48, 128), (224, 224, 512, 4096)]
)
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_candidates_fit_and_both_cores_work_where_they_can(shape, direction):
  found = candidates(problem(*shape, itemsize=4), direction)
  assert found
  assert all(blocks.vmem_bytes <= VMEM_BYTES for blocks in found)
  assert len(set(found)) == len(found)
  evenly = [one for one in found if one.grid[0] * one.grid[1] % 2 == 0]
  assert found[: len(evenly)] == evenly


def test_a_chosen_tile_takes_precedence_over_the_likely_best(tmp_path):
  small = problem(5, 3, 48, 128)
  assert choose(small, "forward") == candidates(small, "forward")[0]
  path = tmp_path / "tiles.json"
  tile = Tile(rows=1, images=48, channels=128)
  entry = {"problem": dataclasses.asdict(small), "tile": dataclasses.asdict(tile)}
  path.write_text(json.dumps([entry | {"direction": "forward"}]))
  assert choose(small, "forward", path).tile == tile
  assert choose(small, "backward", path) == candidates(small, "backward")[0]


def test_rows_that_do_not_fit_vmem_are_not_covered():
  with pytest.raises(NotImplementedError, match="do not fit VMEM"):
    choose(problem(1, 100_000, 16, 128, itemsize=4), "forward")


def test_chosen_tiles_are_the_tiles_of_existing_kernels():
  chosen = read_tiles(CHOSEN, Problem, Tile)
  assert len(chosen) == len(json.loads(CHOSEN.read_text()))
  assert set(chosen) == set(sweeps("se_residual", 32))
