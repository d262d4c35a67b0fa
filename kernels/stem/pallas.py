"""The stem with implementation="pallas": how images, filters and results are packed."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kernels.scaled_ws_conv.filters import rounded, to_rows
from kernels.scaled_ws_conv.formulas import Activation, Standardization, standardize_weight
from kernels.scaled_ws_conv.pallas import check_activation
from kernels.scaled_ws_conv.vjp import convolve
from kernels.stem.formulas import STRIDES
from kernels.stem.problem import Problem, problems_of
from kernels.stem.tile import choose_both


def stem_convolutions(
  images: Float[Array, "h w n c"],
  weights: Sequence[Float[Array, "3 3 _ _"]],
  gains: Sequence[Float[Array, " _"]],
  biases: Sequence[Float[Array, " _"]],
  input_scale: Float[Array, ""],
  *,
  activation: Activation,
  standardization: Standardization,
) -> Float[Array, "h2 w2 n o"]:
  """Computes what the reference computes, from the same arguments.

  Raises:
    NotImplementedError: for channels that do not fill the lanes, sides that do not fill packs, and
      activations that `check_activation` refuses.
  """
  if images.dtype not in (jnp.bfloat16, jnp.float32):
    raise NotImplementedError("images other than bfloat16 and float32")
  check_activation(activation)
  problems = problems_of(
    images.shape, [weight.shape for weight in weights], itemsize=images.dtype.itemsize
  )
  all_passes = [choose_both(problem) for problem in problems]
  count = images.shape[2]
  x = _packed_images(images, problems[0])
  for i, (problem, passes, weight, gain, bias) in enumerate(
    zip(problems, all_passes, weights, gains, biases, strict=True)
  ):
    standardized = standardize_weight(weight, gain, standardization) * (input_scale if i else 1)
    rows = to_rows(_packed_filters(standardized, problem))
    x, _ = convolve(
      passes,
      activation if i else None,
      standardization,
      x.reshape(problem.input_shape),
      rounded(rows, x.dtype, jnp.dtype(jnp.float32)),
      jnp.tile(bias, problem.out_pack),
    )
  return x[:, :, 0, :count]


def _packed_images(images: Float[Array, "h w n c"], first: Problem) -> Float[Array, "..."]:
  """Pads the batch and moves packs of rows and columns into the channels."""
  count, channels = images.shape[2:]
  x = jnp.pad(images, ((0, 0), (0, 0), (0, first.images - count), (0, 0)))
  x = x.reshape(first.height, STRIDES[0], first.width, -1, first.images, channels)
  return jnp.transpose(x, (0, 2, 4, 1, 3, 5))


def _packed_filters(
  weight: Float[Array, "3 3 i o"], problem: Problem
) -> Float[Array, "taps inputs outputs"]:
  """Copies the filter into the bands of each tap's matrix."""
  # At a lower precision, even products of float32 with zeros and ones would be rounded.
  squares = jnp.einsum(
    "try,tpqx,yxio->trpiqo",
    problem.band.rows,
    problem.band.columns,
    weight,
    precision=jax.lax.Precision.HIGHEST,
  )
  return squares.reshape(len(problem.taps), problem.in_channels, problem.out_channels)
