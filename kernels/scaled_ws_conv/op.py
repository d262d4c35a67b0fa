"""The public op: convolution with scaled weight standardization."""

import functools

from jaxtyping import Array, Float

from kernels.dispatch import Implementation, dispatch
from kernels.scaled_ws_conv import reference
from kernels.scaled_ws_conv.reference import Activation


def scaled_ws_conv(
  x: Float[Array, "h w n c"],
  weight: Float[Array, "kh kw i o"],
  gain: Float[Array, " o"],
  bias: Float[Array, " o"],
  *,
  stride: int = 1,
  groups: int = 1,
  pool: bool = False,
  input_activation: Activation | None = None,
  input_scale: Float[Array, ""] | None = None,
  output_activation: Activation | None = None,
  implementation: Implementation = "reference",
) -> Float[Array, "h2 w2 n o"]:
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
    input_activation=input_activation,
    output_activation=output_activation,
  )
  return dispatch(
    "scaled_ws_conv",
    implementation,
    reference=functools.partial(reference.scaled_ws_conv, **static),
    kernel=None,
    arguments=(x, weight, gain, bias, input_scale),
  )
