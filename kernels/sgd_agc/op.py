"""The public op: one parameter's step of SGD with AGC."""

import functools
from typing import NamedTuple

from jaxtyping import Array, Float

from kernels.dispatch import Implementation, dispatch
from kernels.sgd_agc import kernel_tpu, reference


class Step(NamedTuple):
  """What one step makes of one parameter, all float32.

  Attributes:
    parameter: the new one.
    momentum_buffer: the new one.
    average: the new one, or None.
    gradient_square_sum: of the gradient before it was clipped, a scalar. AGC computes it anyway,
      and the norm of all gradients together is worth watching.
  """

  parameter: Float[Array, "*p"]
  momentum_buffer: Float[Array, "*p"]
  average: Float[Array, "*p"] | None
  gradient_square_sum: Float[Array, ""]


def sgd_agc(
  parameter: Float[Array, "*p"],
  gradient: Float[Array, "*p"],
  momentum_buffer: Float[Array, "*p"],
  average: Float[Array, "*p"] | None = None,
  *,
  learning_rate: Float[Array, ""],
  momentum: Float[Array, ""],
  weight_decay: Float[Array, ""],
  clipping: Float[Array, ""] | None,
  average_decay: Float[Array, ""] | None = None,
  implementation: Implementation = "reference",
) -> Step:
  """`reference.sgd_agc`, by a TPU kernel where one covers the arguments.

  Raises:
    ValueError: there is an average without its decay, or the other way round.
  """
  if (average is None) != (average_decay is None):
    raise ValueError(f"{average_decay=}: an average has a decay, and nothing else has")
  return Step(
    *dispatch(
      "sgd_agc",
      implementation,
      reference=reference.sgd_agc,
      kernel=functools.partial(
        kernel_tpu.sgd_agc,
        parameter_norm_floor=reference.PARAMETER_NORM_FLOOR,
        gradient_norm_floor=reference.GRADIENT_NORM_FLOOR,
      ),
      arguments=(
        parameter,
        gradient,
        momentum_buffer,
        average,
        learning_rate,
        momentum,
        weight_decay,
        clipping,
        average_decay,
      ),
    )
  )
