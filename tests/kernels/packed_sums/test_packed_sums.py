"""The reference of packed sums against sums of slices."""

import jax.numpy as jnp
import numpy as np
import pytest

from kernels import add_parts
from kernels.packed_sums.formulas import STEP_BYTES_MAX, STEPS_MAX, Part, covers, layout_of

SHAPES = ((9, 1, 128, 128), (1, 16, 256, 128), (96, 1024), (1, 2, 64, 256))
PARTS = (Part(2, 8, 0), Part(2, 4, 1), Part(1, 4, 0), Part(3, 2, 1))


def part_of(gradient, part, index):
  return np.split(np.asarray(gradient), part.parts, part.axis)[index]


@pytest.mark.parametrize("hops", [0, 1, 3])
def test_sums_are_unpacked_as_they_were_packed(hops):
  generator = np.random.default_rng(0)
  packed, expected = None, [0] * len(SHAPES)
  for hop in range(hops + 1):
    # Small integers, whose sums are exact.
    gradients = tuple(jnp.asarray(generator.integers(-9, 9, shape), "bfloat16") for shape in SHAPES)
    indices = [(5 * hop + i) % part.parts for i, part in enumerate(PARTS)]
    packed = add_parts(packed, gradients, jnp.asarray(indices), parts=PARTS, unpacks=hop == hops)
    expected = [
      total + part_of(gradient, part, index)
      for total, gradient, part, index in zip(expected, gradients, PARTS, indices, strict=True)
    ]
  for ours, total in zip(packed, expected, strict=True):
    assert ours.dtype == jnp.bfloat16
    np.testing.assert_array_equal(ours, total)


def test_a_layout_has_an_even_number_of_steps_where_that_is_possible():
  # Each of eight shards has 16 rows of each, so only leading indices can be divided.
  parts = (Part(2, 8, 0),) * 2
  assert layout_of(((9, 1, 128, 128), (1, 6, 128, 128)), parts, 2).steps == 3
  assert layout_of(((4, 1, 128, 128), (1, 6, 128, 128)), parts, 2).steps == 2
  assert layout_of(((9, 1, 128, 128), (1, 5, 128, 128)), parts, 2).steps == 1


def test_steps_are_not_too_large_where_that_is_possible():
  large = layout_of(((16, 4096, 128),), (Part(1, 4, 0),), 2)
  assert large.rows[0] * 128 * 2 == STEP_BYTES_MAX
  largest = layout_of(((4096, 64, 128),), (Part(1, 4, 0),), 2)
  assert largest.steps == STEPS_MAX


@pytest.mark.parametrize(
  ("shape", "part", "itemsize", "is_covered"),
  [
    ((9, 1, 64, 128), Part(2, 4, 0), 2, True),
    # Eight rows fill a tile of float32, and half of one of bfloat16.
    ((9, 1, 64, 128), Part(2, 8, 0), 2, False),
    ((9, 1, 64, 128), Part(2, 8, 0), 4, True),
    ((64, 1024), Part(1, 8, 0), 2, True),
    ((64, 512), Part(1, 8, 0), 2, False),
    ((64, 30_000), Part(0, 4, 0), 2, False),
    ((4096,), Part(0, 4, 0), 2, False),
  ],
)
def test_covers_parts_of_whole_tiles(shape, part, itemsize, is_covered):
  assert covers(shape, part, itemsize) == is_covered
