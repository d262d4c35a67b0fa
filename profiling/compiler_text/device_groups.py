"""Reads which devices a collective of optimized HLO text exchanges data between."""

import itertools
import math
import re

from profiling.compiler_text.hlo_text import Instruction

Groups = tuple[tuple[int, ...], ...]
"""Devices by their number in the program: groups, or the source and target of each pair."""


def device_groups(collective: Instruction) -> Groups:
  """Returns the groups in which devices exchange data, or the pairs of a permutation.

  The text has source_target_pairs={{0,1},{1,0}}, replica_groups={{0,1},{2,3}}, or
  replica_groups=[2,4]<=[4,2]T(1,0): the numbers from 0 on in the shape [4,2], with its axes
  transposed, cut into 2 groups of 4.

  Returns:
    The groups; empty if the text has none, which is one group of all devices.
  """
  if listed := re.search(
    r"(?:replica_groups|source_target_pairs)=\{((?:\{[\d,]+\},?)+)\}", collective.rest
  ):
    return tuple(
      tuple(map(int, group.split(","))) for group in re.findall(r"\{([\d,]+)\}", listed[1])
    )
  if iota := re.search(
    r"replica_groups=\[\d+,(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", collective.rest
  ):
    size, sides = int(iota[1]), list(map(int, iota[2].split(",")))
    axes = list(map(int, iota[3].split(","))) if iota[3] else list(range(len(sides)))
    strides = [math.prod(sides[axis + 1 :]) for axis in range(len(sides))]
    devices = [
      sum(index * strides[axis] for index, axis in zip(indices, axes, strict=True))
      for indices in itertools.product(*(range(sides[axis]) for axis in axes))
    ]
    return tuple(tuple(devices[start : start + size]) for start in range(0, len(devices), size))
  return ()
