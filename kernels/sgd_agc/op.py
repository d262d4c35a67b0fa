"""The public op: one parameter's step of SGD with AGC."""

from jaxtyping import Array, Float

from kernels.dispatch import Implementation, dispatch
from kernels.sgd_agc import reference


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
) -> tuple[Float[Array, "*p"], Float[Array, "*p"]]:
  """`reference.sgd_agc`, by a TPU kernel where one covers the arguments."""
  return dispatch(
    "sgd_agc",
    implementation,
    reference=reference.sgd_agc,
    kernel=None,
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
