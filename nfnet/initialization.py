"""Draws the initial values of the parameters (paper B, section 2, and the code released with it).

NumPy draws the values on the host, with a separate generator for each parameter. They therefore
depend only on the seed and the parameter's name, not on the platform, the number of devices or the
version of JAX. Nothing has to be compiled either: a jitted function that draws a small network's
parameters takes 45 seconds to compile on two cores.
"""

import math
import re
import zlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from nfnet.errors import checked_whole_number
from nfnet.model import (
  CLASSIFIER_WEIGHT,
  NFNet,
  check_model,
  parameter_name,
  parameter_shapes,
)

Draw = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]


def _fan_in_normal(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
  # The last axis is the output channels, both of HWIO filters and of IO matrices.
  return generator.standard_normal(shape, np.float32) / math.sqrt(math.prod(shape[:-1]))


def _truncated_fan_in_normal(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
  # Truncated at two standard deviations and not rescaled for it, as in the released code.
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
"""Patterns of parameter names; the first one that matches the whole name applies."""


def initial_parameters(model: NFNet, seed: int) -> dict[str, Any]:
  """Draws nested dictionaries of float32 NumPy arrays in the shapes of `model`.

  Args:
    model: network to draw for.
    seed: nonnegative number.

  Raises:
    ValueError: `model` is not a network, the seed is not such a number, or a parameter matches no
      pattern.
  """
  check_model(model)
  seed = checked_whole_number("seed", seed, 0)

  def draw(path, shape: jax.ShapeDtypeStruct) -> np.ndarray:
    name = parameter_name(path)
    for pattern, initializer in INITIALIZERS:
      if re.fullmatch(pattern, name):
        generator = np.random.Generator(np.random.Philox([seed, zlib.crc32(name.encode())]))
        return initializer(generator, shape.shape).astype(np.float32)
    raise ValueError(f"parameter {name!r} matches no initializer")

  return jax.tree_util.tree_map_with_path(draw, parameter_shapes(model))
