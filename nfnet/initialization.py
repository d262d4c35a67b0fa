"""The values that parameters start from (paper B, section 2, and the code released with it).

Drawn on the host by numpy, one generator a parameter: the values depend on the seed and the
parameter's name alone, not on the platform, the number of devices or the version of JAX, and
nothing has to be compiled, where a jitted draw of a small network's parameters takes 45 seconds
on two cores.
"""

import math
import re
import zlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from nfnet.model import CLASSIFIER_WEIGHT, NFNet, parameter_name, parameter_shapes

Draw = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]


def _fan_in_normal(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
  # HWIO and IO both end in the output channels.
  return generator.standard_normal(shape, np.float32) / math.sqrt(math.prod(shape[:-1]))


def _truncated_fan_in_normal(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
  # Cut off at two deviations and not rescaled for the cut, as in the released code.
  values = generator.standard_normal(shape, np.float32)
  while (outside := np.abs(values) > 2).any():
    values[outside] = generator.standard_normal(np.count_nonzero(outside), np.float32)
  return values / math.sqrt(math.prod(shape[:-1]))


def _classifier_normal(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
  return generator.standard_normal(shape, np.float32) * 0.01


def _constant(value: float) -> Draw:
  return lambda generator, shape: np.full(shape, value, np.float32)


INITIALIZERS: tuple[tuple[str, Draw], ...] = (
  (CLASSIFIER_WEIGHT, _classifier_normal),
  (r".*/squeeze_excite/.*/weight", _truncated_fan_in_normal),
  (r".*/weight", _fan_in_normal),
  (r".*/gain", _constant(1.0)),
  (r".*/(bias|skip_gain)", _constant(0.0)),
)
"""In order: the first pattern that matches a parameter's whole name counts."""


def initial_parameters(model: NFNet, seed: int) -> dict[str, Any]:
  """Nested dictionaries of float32 numpy arrays in the shapes of `model`.

  Args:
    model: any network.
    seed: not negative.

  Raises:
    ValueError: a parameter matches no pattern.
  """

  def draw(path, shape: jax.ShapeDtypeStruct) -> np.ndarray:
    name = parameter_name(path)
    for pattern, initializer in INITIALIZERS:
      if re.fullmatch(pattern, name):
        generator = np.random.Generator(np.random.Philox([seed, zlib.crc32(name.encode())]))
        return initializer(generator, shape.shape).astype(np.float32)
    raise ValueError(f"parameter {name!r} matches no initializer")

  return jax.tree_util.tree_map_with_path(draw, parameter_shapes(model))
