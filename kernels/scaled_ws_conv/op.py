"""The public ops: convolution with scaled weight standardization, and four of them in a row."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
from jaxtyping import Array, Float

from kernels.dispatch import Implementation, dispatch
from kernels.scaled_ws_conv import kernel_tpu, reference, stem_tpu
from kernels.scaled_ws_conv.reference import Activation


class Convolution(NamedTuple):
  """What a convolution returns.

  Attributes:
    result: of the input's dtype.
    input: as it was given, or None. Who uses this one has the gradients of all uses added inside of
      the convolution's backward pass.
  """

  result: Float[Array, "h2 w2 n o"]
  input: Float[Array, "h w n c"] | None


def scaled_ws_conv(
  x: Float[Array, "h w n c"],
  weight: Float[Array, "kh kw i o"],
  gain: Float[Array, " o"],
  bias: Float[Array, " o"],
  *,
  stride: int = 1,
  groups: int = 1,
  pool: bool = False,
  activation: Activation | None = None,
  input_scale: Float[Array, ""] | None = None,
  returns_input: bool = False,
  implementation: Implementation = "reference",
) -> Convolution:
  """`reference.scaled_ws_conv`, by a TPU kernel where one covers the arguments.

  Raises:
    ValueError: channels, groups and weight do not fit together.
  """
  channels, outputs = x.shape[-1], weight.shape[-1]
  if weight.shape[2] * groups != channels:
    raise ValueError(f"{weight.shape=}, {groups=}: input channels must be {channels=} / groups")
  if outputs % groups:
    raise ValueError(f"{weight.shape=}: output channels must be a multiple of {groups=}")
  static = dict(
    stride=stride,
    groups=groups,
    pool=pool,
    activation=activation,
    returns_input=returns_input,
  )
  if input_scale is not None:
    input_scale = jax.lax.stop_gradient(input_scale)
  return Convolution(
    *dispatch(
      "scaled_ws_conv",
      implementation,
      reference=functools.partial(reference.scaled_ws_conv, **static),
      kernel=functools.partial(
        kernel_tpu.scaled_ws_conv, **static, variance_floor=reference.VARIANCE_FLOOR
      ),
      arguments=(x, weight, gain, bias, input_scale),
    )
  )


def stem(
  images: Float[Array, "h w n c"],
  weights: Sequence[Float[Array, "3 3 _ _"]],
  gains: Sequence[Float[Array, " _"]],
  biases: Sequence[Float[Array, " _"]],
  *,
  activation: Activation,
  input_scale: Float[Array, ""],
  implementation: Implementation = "reference",
) -> Float[Array, "h2 w2 n o"]:
  """`reference.stem`, by TPU kernels where these cover the arguments."""
  static = dict(strides=reference.STEM_STRIDES, activation=activation)
  return dispatch(
    "stem",
    implementation,
    reference=functools.partial(reference.stem, **static),
    kernel=functools.partial(stem_tpu.stem, **static, standardize=reference.standardize_weight),
    arguments=(images, weights, gains, biases, jax.lax.stop_gradient(input_scale)),
  )
