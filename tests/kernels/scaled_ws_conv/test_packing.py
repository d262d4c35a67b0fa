import collections
import dataclasses
import itertools

import pytest

from kernels.layout import LANES
from kernels.scaled_ws_conv import packing
from kernels.scaled_ws_conv.problem import Problem
from kernels.stem.problem import problems_of
from profiling.compile.op_shapes import ConvShape, named_shapes

HALF_FULL = Problem(
  height=4,
  width=4,
  images=16,
  in_channels=192,
  out_channels=192,
  filter_pixels=3,
  standardized=True,
)
SHIFTS = list(itertools.product((-1, 0, 1), repeat=2))


def contributions(operand_channels, result_channels):
  """Counts, for a pair of results, which halves are multiplied: by pixel, channel and shift.

  A key is the result's pixel (0 or 1) and first channel, the operand's shift from it, and the
  operand's first channel; channels come in halves of a tile.
  """
  counts = collections.Counter()
  squares = packing.squares(operand_channels, result_channels)
  for tile in range(-(-result_channels // LANES)):
    shared = tile == result_channels // LANES
    for term in packing.terms(operand_channels, of_pairs=shared):
      for part in next(squares):
        # The operand's pixel, from the first pixel of the results' tile, reached in two ways.
        assert term.right + part.operand.right == part.result.right + part.right
        for pixel in (part.result.right,) if shared else (0, 1):
          operand = (part.down, part.right), part.operand.channel
          counts[pixel, part.result.channel, *operand] += 1
  assert next(squares, None) is None
  return counts


@pytest.mark.parametrize("channels", [(192, 192), (64, 64), (320, 192), (128, 64), (192, 256)])
def test_each_tap_is_multiplied_once(channels):
  operands, results = (range(0, one, packing.HALF) for one in channels)
  expected = itertools.product((0, 1), results, SHIFTS, operands)
  assert contributions(*channels) == dict.fromkeys(expected, 1)


def test_parts_of_a_square_do_not_overlap():
  for parts in packing.squares(192, 192):
    places = [(part.operand.lanes.start, part.result.lanes.start) for part in parts]
    assert len(set(places)) == len(places)


@pytest.mark.parametrize(
  ("channels", "products"),
  # Without packing, two pixels take 2 * 9 products for each two tiles: 72, 18, 162, 18 and 72.
  [((192, 192), 48), ((64, 64), 6), ((320, 192), 24 + 24 + 30), ((128, 64), 12), ((192, 256), 60)],
)
def test_products_of_a_pair_of_pixels(channels, products):
  assert packing.products(*channels) == products


def test_taps_are_those_of_the_problem():
  for i, tap in enumerate(HALF_FULL.taps):
    assert packing.tap(*tap.shift) == i


@pytest.mark.parametrize(
  "changes",
  [
    dict(in_channels=128, out_channels=128),
    dict(in_channels=160),
    dict(filter_pixels=1),
    dict(stride=2),
    dict(groups=3),
    dict(width=3),
    dict(ends_branch=True),
    dict(returns_input=True),
    dict(standardized=False),
  ],
)
def test_other_problems_are_not_packed(changes):
  assert packing.can_pack(HALF_FULL)
  assert not packing.can_pack(dataclasses.replace(HALF_FULL, **changes))


def test_of_the_published_networks_only_a_group_of_192_is_packed():
  convolutions = [shape for shape in named_shapes() if isinstance(shape, ConvShape)]
  packed = {
    (problem.in_channels, problem.out_channels, problem.filter_pixels)
    for shape in convolutions
    for problem in shape.problems(32)
    if packing.can_pack(problem)
  }
  assert packed == {(192, 192, 3)}


def test_the_stem_packs_its_own_way():
  shapes = [(3, 3, 3, 16), (3, 3, 16, 32), (3, 3, 32, 64), (3, 3, 64, 128)]
  assert not any(map(packing.can_pack, problems_of((64, 64, 16, 3), shapes, itemsize=2)))
