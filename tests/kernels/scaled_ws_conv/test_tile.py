import dataclasses
import itertools
import json

import pytest

from kernels.scaled_ws_conv.geometry import convolution
from kernels.scaled_ws_conv.tile import CHOSEN, Blocks, Tile, candidates, choose
from kernels.tpu import VMEM_BYTES
from profiling.compile.tile_worker import tiled_kernels

GROUPED = convolution(
  height=14, width=14, images=32, in_channels=768, out_channels=768, kernel_pixels=3, groups=6
)
PLAIN = convolution(
  height=28, width=28, images=16, in_channels=256, out_channels=512, kernel_pixels=1
)
TILE = Tile(images=16, rows=14, columns=14, channels=128, split_channels=True)
KERNELS = tiled_kernels(32)


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
  for geometry, direction, tile in (
    (GROUPED, "forward", dataclasses.replace(TILE, rows=7)),
    (GROUPED, "backward", dataclasses.replace(TILE, rows=2, split_channels=False)),
    (PLAIN, "backward", Tile(images=16, rows=2, columns=7, channels=128, split_channels=False)),
  ):
    blocks = Blocks(geometry, direction, tile)
    cores, channels, positions = blocks.grid
    # Python's integers have no `lax.div`; JAX's do.
    visited = {
      tuple(map(int, blocks.at(core, channel, position)))
      for core in range(cores)
      for channel in range(channels)
      for position in range(positions)
    }
    images, rows = geometry.images // tile.images, geometry.height // tile.rows
    assert visited == {
      (c, n, r) for c in range(blocks.channel_blocks) for n in range(images) for r in range(rows)
    }
    assert cores * channels * positions == len(visited)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (dict(images=24), "images: 32 is not a multiple of 24"),
    (dict(images=8), "images: 8 is not a multiple of 16"),
    (dict(rows=5), "rows: 14 is not a multiple of 5"),
    (dict(columns=4), "columns: 14 is not a multiple of 4"),
    (dict(rows=0), "rows: 14 is not a multiple of 0"),
    (dict(channels=100), "channels: 768 is not a multiple of 100"),
    (dict(channels=384, split_channels=False), "not those of a group"),
    (dict(cores=4), "cores: 6 is not a multiple of 4"),
  ],
)
def test_a_tile_has_to_divide_the_work(changes, message):
  with pytest.raises(ValueError, match=message):
    Blocks(GROUPED, "forward", dataclasses.replace(TILE, **changes))


def test_a_tile_has_to_fit_vmem():
  large = convolution(
    height=14, width=14, images=32, in_channels=2048, out_channels=2048, kernel_pixels=1
  )
  tile = Tile(images=16, rows=1, columns=14, channels=2048, split_channels=False)
  with pytest.raises(ValueError, match="bytes of VMEM are more than"):
    Blocks(large, "forward", tile)


def test_cores_may_not_share_an_image_whose_mean_is_wanted():
  geometry = dataclasses.replace(PLAIN, ends_branch=True)
  tile = Tile(images=16, rows=2, columns=7, channels=512, split_channels=False)
  Blocks(PLAIN, "forward", tile)
  with pytest.raises(ValueError, match="cores share an image"):
    Blocks(geometry, "forward", tile)
  # Backward, no image's results are added up.
  Blocks(geometry, "backward", dataclasses.replace(tile, channels=256))
  others = candidates(geometry, "forward", VMEM_BYTES)
  assert others
  assert all(blocks.tile.split_channels for blocks in others)


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("name", KERNELS)
def test_every_kernel_of_the_published_networks_has_a_tile_for_both_cores(name, direction):
  blocks = choose(KERNELS[name].geometry, direction)
  assert blocks.tile.cores == 2
  assert blocks.vmem_bytes <= VMEM_BYTES


def test_chosen_tiles_are_those_of_kernels_that_there_are():
  keys = [(entry["name"], entry["direction"]) for entry in json.loads(CHOSEN.read_text())]
  assert sorted(keys) == sorted(itertools.product(KERNELS, ("forward", "backward")))


@pytest.mark.parametrize("images", [16, 48, 64])
def test_other_batches_have_tiles_too(images):
  for kernel in tiled_kernels(images).values():
    for direction in ("forward", "backward"):
      assert choose(kernel.geometry, direction).geometry.images == images
