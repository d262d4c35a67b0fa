"""Reads how far estimates are from published measurements, to print this with every estimate.

`python -m profiling.calibrate` writes the file that this module reads.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence

from profiling.estimate.stored import read_stored


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spread:
  """The ratios of measured to estimated figures of several programs.

  Attributes:
    mean: geometric mean of the ratios.
    lowest: smallest ratio.
    highest: largest ratio.
  """

  mean: float
  lowest: float
  highest: float


def spread(ratios: Sequence[float]) -> Spread:
  """Returns mean, lowest and highest of at least one positive ratio."""
  mean = math.exp(sum(math.log(ratio) for ratio in ratios) / len(ratios))
  return Spread(mean=mean, lowest=min(ratios), highest=max(ratios))


@functools.cache
def error_bars() -> dict[str, Spread]:
  """Returns the spread by TPU generation.

  The spread for "v3" comes from step times of paper B, that for "v4" from core-hours of paper A.
  """
  calibration = read_stored("calibration.json")
  return {name: Spread(**table["spread"]) for name, table in calibration["tables"].items()}


def error_bars_json() -> dict[str, dict[str, float]]:
  """Returns `error_bars` as JSON values."""
  return {name: dataclasses.asdict(bar) for name, bar in error_bars().items()}


def error_bar_text() -> str:
  """Returns one line for the foot of a table of estimates."""
  v3, v4 = error_bars()["v3"], error_bars()["v4"]
  return (
    f"Error bar (python -m profiling.calibrate): what was published took {v3.lowest:.2f} to "
    f"{v3.highest:.2f} times the estimate on TPU v3 (steps of the released code), {v4.lowest:.2f} "
    f"to {v4.highest:.2f} times on TPU v4 (core-hours of code that was not released)"
  )
