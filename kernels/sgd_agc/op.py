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
    gradient_square_sum: of the gradient before it was clipped, a scalar. AGC computes it anyway,
      and the norm of all gradients together is worth watching.
  """

  parameter: Float[Array, "*p"]
  momentum_buffer: Float[Array, "*p"]
  gradient_square_sum: Float[Array, ""]


def sgd_agc(
  parameter: Float[Array, "*p"],
  gradient: Float[Array, "*p"],
  momentum_buffer: Float[Array, "*p"],
  *,
  learning_rate: Float[Array, ""],
  momentum: Float[Array, ""],
  weight_decay: Float[Array, ""],
  clipping: Float[Array, ""] | None,
  implementation: Implementation = "reference",
) -> Step:
  """`reference.sgd_agc`, by a TPU kernel where one covers the arguments."""
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
        learning_rate,
        momentum,
        weight_decay,
        clipping,
      ),
    )
  )
