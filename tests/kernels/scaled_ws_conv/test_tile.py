import dataclasses
import functools
import itertools
import json

import pytest

from kernels.scaled_ws_conv.problem import Problem
from kernels.scaled_ws_conv.tile import CHOSEN, Blocks, Tile, candidates, choose
from kernels.tpu import VMEM_BYTES, read_tiles
from profiling.compile.tile_worker import tiled_kernels

GROUPED = Problem(
  height=14, width=14, images=32, in_channels=768, out_channels=768, filter_pixels=3, groups=6
)
PLAIN = Problem(height=28, width=28, images=16, in_channels=256, out_channels=512, filter_pixels=1)
HALF_FULL = Problem(
  height=14,
  width=14,
  images=32,
  in_channels=192,
  out_channels=192,
  filter_pixels=3,
  standardized=True,
)
PACKED = Tile(images=16, rows=2, columns=7, channels=192, split_channels=False, packed=True)
TILE = Tile(images=16, rows=14, columns=14, channels=128, split_channels=True)


@functools.cache
def kernels(images=32):
  """Returns the kernels of the published networks, which takes seconds."""
  return tiled_kernels("scaled_ws_conv", images)


def test_blocks_of_a_grouped_convolution_by_hand():
  blocks = Blocks(GROUPED, "forward", TILE)
  # Six groups on two cores, two blocks of images.
  assert blocks.grid == (2, 3, 2)
  pixels, lanes = 14 * 14 * 16, 128
  activations = 2 * 2 * pixels * lanes * 2
  weights = 2 * 9 * 128 * 128 * 4 + 2 * 3 * 8 * 128 * 4
  scratch = 16 * 16 * 16 * lanes * 2 + 9 * 128 * 128 * 2
  assert blocks.vmem_bytes == activations + weights + scratch
  assert blocks.products == 14 * 14 * 9
  assert Blocks(GROUPED, "backward", TILE).products == 2 * 14 * 14 * 9


def test_every_block_of_the_work_is_visited_once():
  for problem, direction, tile in (
    (GROUPED, "forward", dataclasses.replace(TILE, rows=7)),
    (GROUPED, "backward", dataclasses.replace(TILE, rows=2, split_channels=False)),
    (PLAIN, "backward", Tile(images=16, rows=2, columns=7, channels=128, split_channels=False)),
  ):
    blocks = Blocks(problem, direction, tile)
    cores, channels, positions = blocks.grid
    visited = {
      tuple(map(int, blocks.at(core, channel, position)))
      for core in range(cores)
      for channel in range(channels)
      for position in range(positions)
    }
    images, rows = problem.images // tile.images, problem.height // tile.rows
    assert visited == {
      (c, n, r) for c in range(blocks.channel_blocks) for n in range(images) for r in range(rows)
    }
    assert cores * channels * positions == len(visited)


def test_blocks_of_a_packed_convolution_by_hand():
  forward = Blocks(HALF_FULL, "forward", PACKED)
  # Two blocks of images on two cores; seven blocks of rows are finished in eight steps.
  assert forward.grid == (2, 1, 8)
  pixels, columns, images = 2 * 14 * 16, 16, 16
  activations = 2 * 2 * pixels * 256 * 2
  vectors = 2 * 3 * 8 * 256 * 4
  rows = 9 * 2 * 192 * 128 * 2
  window = 2 * (2 + 1 + 2) * columns * images * 128 * 2
  assert forward.vmem_bytes == activations + vectors + rows + window + (15 + 18) * 128 * 128 * 2
  assert forward.products == pixels // 16 * (15 + 18 // 2)
  backward = Blocks(HALF_FULL, "backward", PACKED)
  # A product has 128 of the inputs of a pixel, and 192 are one and a half.
  assert backward.products == forward.products + pixels // 16 * 15 * 1.5


def test_each_block_of_rows_arrives_before_the_one_above_it_is_finished():
  blocks = Blocks(HALF_FULL, "backward", PACKED)
  steps = range(blocks.row_steps)
  assert [int(blocks.arriving(step)) for step in steps] == [0, 1, 2, 3, 4, 5, 6, 6]
  assert [int(blocks.finished(step)) for step in steps] == [0, 0, 1, 2, 3, 4, 5, 6]
  places = {
    tuple(map(int, blocks.at(core, 0, position)))
    for core in range(2)
    for position in range(blocks.grid[2])
  }
  assert places == {(0, images, step) for images in range(2) for step in steps}


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (dict(columns=14), "columns: 7 is not a multiple of 14"),
    (dict(images=32), "blocks for the cores: 8 is not a multiple of 16|cores share an image"),
    (dict(split_channels=True, cores=1), "packs some of the channels"),
  ],
)
def test_a_packed_tile_has_all_channels_and_whole_images(changes, message):
  with pytest.raises(ValueError, match=message):
    Blocks(HALF_FULL, "forward", dataclasses.replace(PACKED, **changes))


def test_full_tiles_are_not_packed():
  problem = dataclasses.replace(HALF_FULL, in_channels=128, out_channels=128)
  with pytest.raises(ValueError, match="cannot pack"):
    Blocks(problem, "forward", dataclasses.replace(PACKED, channels=128))
  assert not any(one.tile.packed for one in candidates(problem, "forward", VMEM_BYTES))


def test_packed_tiles_are_the_likely_best_where_each_core_has_images():
  for direction in ("forward", "backward"):
    assert candidates(HALF_FULL, direction, VMEM_BYTES)[0].tile.packed
    few = dataclasses.replace(HALF_FULL, images=16)
    assert not candidates(few, direction, VMEM_BYTES)[0].tile.packed


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (dict(images=24), "images: 32 is not a multiple of 24"),
    (dict(images=8), "images: 8 is not a multiple of 16"),
    (dict(rows=5), "rows: 14 is not a multiple of 5"),
    (dict(columns=4), "columns: 14 is not a multiple of 4"),
    (dict(rows=0), "rows: 14 is not a multiple of 0"),
    (dict(channels=100), "channels: 768 is not a multiple of 100"),
    (dict(channels=384, split_channels=False), "must be the 128 of a group"),
    (dict(cores=4), "cores: 6 is not a multiple of 4"),
  ],
)
def test_a_tile_has_to_divide_the_work(changes, message):
  with pytest.raises(ValueError, match=message):
    Blocks(GROUPED, "forward", dataclasses.replace(TILE, **changes))


def test_a_tile_has_to_fit_vmem():
  large = Problem(
    height=14, width=14, images=32, in_channels=2048, out_channels=2048, filter_pixels=1
  )
  tile = Tile(images=16, rows=1, columns=14, channels=2048, split_channels=False)
  with pytest.raises(ValueError, match="bytes of VMEM are more than"):
    Blocks(large, "forward", tile)


def test_cores_may_not_share_an_image_whose_mean_is_wanted():
  problem = dataclasses.replace(PLAIN, ends_branch=True)
  tile = Tile(images=16, rows=2, columns=7, channels=512, split_channels=False)
  Blocks(PLAIN, "forward", tile)
  with pytest.raises(ValueError, match="cores share an image"):
    Blocks(problem, "forward", tile)
  # Backward, no image's results are added up.
  Blocks(problem, "backward", dataclasses.replace(tile, channels=256))
  others = candidates(problem, "forward", VMEM_BYTES)
  assert others
  assert all(blocks.tile.split_channels for blocks in others)


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_every_kernel_of_the_published_networks_has_a_tile_for_both_cores(direction):
  for kernel in kernels():
    blocks = choose(kernel.problem, direction)
    assert blocks.tile.cores == 2, kernel.problem.label
    assert blocks.vmem_bytes <= VMEM_BYTES, kernel.problem.label


def test_chosen_tiles_are_the_tiles_of_existing_kernels():
  chosen = read_tiles(CHOSEN, Problem, Tile)
  assert len(chosen) == len(json.loads(CHOSEN.read_text()))
  problems = (kernel.problem for kernel in kernels())
  passes = set(itertools.product(problems, ("forward", "backward")))
  assert set(chosen) <= passes
  # Standardized filters take the tiles of raw ones where no sweep has found better.
  assert {(problem, _) for problem, _ in passes if not problem.standardized} <= set(chosen)


def test_a_chosen_tile_takes_precedence_over_the_likely_best(tmp_path):
  path = tmp_path / "tiles.json"
  tile = dataclasses.replace(TILE, rows=2, columns=7)
  assert choose(GROUPED, "forward").tile != tile
  entry = {"problem": dataclasses.asdict(GROUPED), "tile": dataclasses.asdict(tile)}
  path.write_text(json.dumps([entry | {"direction": "forward"}]))
  assert choose(GROUPED, "forward", path).tile == tile
  assert choose(GROUPED, "backward", path).tile != tile


@pytest.mark.parametrize(
  ("images", "step"),
  # Where no tile is on file, choosing one takes a while.
  [(16, 5), *(pytest.param(images, 1, marks=pytest.mark.slow) for images in (16, 48))],
)
def test_other_batches_have_tiles_too(images, step):
  for kernel in kernels(images)[::step]:
    for direction in ("forward", "backward"):
      assert choose(kernel.problem, direction).problem.images == images
