import json

import pytest

from kernels.se_residual import tile
from kernels.se_residual.tile import CHOSEN, Blocks, Tile, candidates, choose
from kernels.tpu import VMEM_BYTES
from profiling.compile.tile_worker import sweeps

SHAPE = (14, 14, 32, 1536)


def test_blocks_by_hand():
  tile = Tile(rows=2, images=16, channels=768)
  blocks = Blocks(SHAPE, 2, "forward", tile)
  assert blocks.grid == (2, 2, 7)
  assert blocks.wide_bytes == 2 * 14 * 16 * 768 * 2
  # The branch, the shortcut and the result; the scale.
  assert blocks.vmem_bytes == 2 * (3 * blocks.wide_bytes + 16 * 768 * 4)
  # The cotangent and the branch; two kinds of sums.
  backward = Blocks(SHAPE, 2, "backward", tile)
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
    Blocks(SHAPE, 2, "forward", Tile(**dict(rows=2, images=16, channels=1536) | changes))


@pytest.mark.parametrize("shape", [SHAPE, (7, 7, 16, 384), (5, 3, 48, 128), (224, 224, 512, 4096)])
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_candidates_fit_and_both_cores_work_where_they_can(shape, direction):
  found = candidates(shape, 4, direction)
  assert found
  assert all(blocks.vmem_bytes <= VMEM_BYTES for blocks in found)
  assert len(set(found)) == len(found)
  evenly = [one for one in found if one.grid[0] * one.grid[1] % 2 == 0]
  assert found[: len(evenly)] == evenly


def test_what_was_not_swept_gets_the_likely_best(monkeypatch, tmp_path):
  shape = (5, 3, 48, 128)
  assert choose(shape, 2, "forward") == candidates(shape, 2, "forward")[0]
  path = tmp_path / "tiles.json"
  entry = {"name": tile.name(shape, 2), "direction": "forward"}
  path.write_text(json.dumps([entry | {"tile": {"rows": 1, "images": 48, "channels": 128}}]))
  monkeypatch.setattr(tile, "CHOSEN", path)
  choose.cache_clear()
  assert choose(shape, 2, "forward").tile == Tile(rows=1, images=48, channels=128)
  assert choose(shape, 2, "backward") == candidates(shape, 2, "backward")[0]
  choose.cache_clear()


def test_rows_that_do_not_fit_vmem_are_not_covered():
  with pytest.raises(NotImplementedError, match="do not fit VMEM"):
    choose((1, 100_000, 16, 128), 4, "forward")


def test_chosen_tiles_are_those_of_kernels_that_there_are():
  keys = [(entry["name"], entry["direction"]) for entry in json.loads(CHOSEN.read_text())]
  assert keys == sorted(sweeps("se_residual", 32))
