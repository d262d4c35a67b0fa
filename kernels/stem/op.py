"""The public op: the stem's four convolutions."""

import functools
from collections.abc import Sequence

import jax
from jaxtyping import Array, Float

from kernels.dispatch import Implementation, dispatch
from kernels.scaled_ws_conv.formulas import Activation, Standardization
from kernels.stem import pallas, reference


def stem_convolutions(
  images: Float[Array, "h w n c"],
  weights: Sequence[Float[Array, "3 3 _ _"]],
  gains: Sequence[Float[Array, " _"]],
  biases: Sequence[Float[Array, " _"]],
  input_scale: Float[Array, ""],
  *,
  activation: Activation,
  standardization: Standardization = "released",
  implementation: Implementation = "reference",
) -> Float[Array, "h2 w2 n o"]:
  """Computes `reference.stem_convolutions`, with TPU kernels where they cover the arguments."""
  static = dict(activation=activation, standardization=standardization)
  return dispatch(
    "stem",
    implementation,
    reference=functools.partial(reference.stem_convolutions, **static),
    kernel=functools.partial(pallas.stem_convolutions, **static),
    arguments=(images, weights, gains, biases, jax.lax.stop_gradient(input_scale)),
  )
