"""Tiles of the stem's convolutions, whose kernels are those of scaled_ws_conv."""

import pathlib

from kernels.scaled_ws_conv import tile
from kernels.stem.problem import Problem

CHOSEN = pathlib.Path(__file__).parent / "tiles.json"
"""File of the tiles that a sweep found to be the best."""


def choose(problem: Problem, direction: tile.Direction, path: pathlib.Path = CHOSEN) -> tile.Blocks:
  """Returns the blocks of one pass: see `kernels.scaled_ws_conv.tile.choose`."""
  return tile.choose(problem, direction, path)


def choose_both(problem: Problem, path: pathlib.Path = CHOSEN) -> tile.Passes:
  """Returns the blocks of both passes: see `kernels.scaled_ws_conv.tile.choose_both`."""
  return tile.choose_both(problem, path)
