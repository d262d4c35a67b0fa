import dataclasses
import json

import pytest

from kernels.sgd_agc.problem import Problem, is_transposed, problem_of
from kernels.sgd_agc.tile import CHOSEN, Blocks, Tile, calls_of_small, candidates, choose
from kernels.tpu import VMEM_BYTES, read_tiles
from profiling.compile.tile_worker import sweeps

CLIPPED = Problem(rows=1152, columns=300, clips=True)
NOT_CLIPPED = Problem(rows=30_000, columns=3072, clips=False)


def test_blocks_by_hand():
  blocks = Blocks(CLIPPED, Tile(rows=1152, chunk_rows=32))
  assert blocks.grid == (3, 1)
  # Parameter and buffer, old and new; the gradient; the sums of squares.
  assert blocks.vmem_bytes == 2 * 128 * 4 * (5 * 1152 + 8)
  halved = Problem(rows=1152, columns=300, clips=True, gradient_itemsize=2, has_ema=True)
  blocks = Blocks(halved, Tile(rows=1152, chunk_rows=32))
  assert blocks.vmem_bytes == 2 * 128 * (4 * 6 * 1152 + 2 * 1152 + 4 * 8)


@pytest.mark.parametrize(
  ("problem", "changes", "message"),
  [
    (CLIPPED, dict(rows=1000), "rows: 1152 is not a multiple of 1000"),
    (CLIPPED, dict(rows=576), "a unit of 1152 rows is cut"),
    (CLIPPED, dict(chunk_rows=40), "rows of a block: 1152 is not a multiple of 40"),
    (CLIPPED, dict(chunk_rows=36), "rows of a chunk: 36 is not a multiple of 8"),
    (
      Problem(rows=1152, columns=300, clips=True, gradient_itemsize=2),
      dict(chunk_rows=24),
      "rows of a chunk: 24 is not a multiple of 16",
    ),
    (NOT_CLIPPED, dict(rows=30_000, chunk_rows=40), "bytes of VMEM are more than"),
  ],
)
def test_tiles_that_do_not_fit_are_refused(problem, changes, message):
  with pytest.raises(ValueError, match=message):
    Blocks(problem, Tile(**dict(rows=1152, chunk_rows=32) | changes))


def test_candidates_fit_and_do_not_spill_first():
  for problem in (CLIPPED, NOT_CLIPPED):
    found = candidates(problem)
    assert all(blocks.vmem_bytes <= VMEM_BYTES for blocks in found)
    assert len(set(found)) == len(found)
  assert candidates(CLIPPED)[0].tile == Tile(rows=1152, chunk_rows=32)
  # The longest block that fits.
  assert candidates(NOT_CLIPPED)[0].tile == Tile(rows=3000, chunk_rows=40)


def test_what_was_not_swept_gets_the_likely_best(tmp_path):
  assert choose(CLIPPED) == candidates(CLIPPED)[0]
  path = tmp_path / "tiles.json"
  entry = {
    "problem": dataclasses.asdict(CLIPPED),
    "direction": "update",
    "tile": {"rows": 1152, "chunk_rows": 8},
  }
  path.write_text(json.dumps([entry]))
  assert choose(CLIPPED, path).tile == Tile(rows=1152, chunk_rows=8)


def test_units_that_do_not_fit_vmem_are_not_covered():
  with pytest.raises(NotImplementedError, match="do not fit VMEM"):
    choose(Problem(rows=4096, columns=128, clips=True))


def test_chosen_tiles_are_those_of_kernels_that_there_are():
  assert set(read_tiles(CHOSEN, Problem, Tile)) == set(sweeps("sgd_agc", 32))


def test_gradients_are_widened_where_rows_of_two_do_not_fill_the_sublanes():
  problem = problem_of((3072, 1000), clips=False, gradient_itemsize=2, has_ema=True)
  assert is_transposed((3072, 1000), clips=False)
  assert problem == Problem(rows=1000, columns=3072, clips=False, gradient_itemsize=4, has_ema=True)
  problem = problem_of((3, 3, 128, 1000), clips=True, gradient_itemsize=2, has_ema=False)
  assert not is_transposed((3, 3, 128, 1000), clips=True)
  assert problem == Problem(rows=1152, columns=1000, clips=True, gradient_itemsize=2)


def test_small_parameters_share_calls():
  # In whole tiles, 5 arrays of a matrix take 5 x 40 x 1024 x 4 bytes, of which 12 fit; of the
  # vectors, no more than 128 are in a call.
  shapes = {f"matrix {i}": (320, 100) for i in range(20)}
  shapes |= {f"vector {i}": (1000,) for i in range(140)}
  calls = calls_of_small(shapes, arrays=5)
  assert [name for names in calls for name in names] == list(shapes)
  assert [len(names) for names in calls] == [12, 128, 20]
  with pytest.raises(NotImplementedError, match="does not fit VMEM"):
    calls_of_small({"x": (1_000_000,)}, arrays=5)
