"""The public op: squeeze-excite with the residual addition."""

import functools

from jaxtyping import Array, Float

from kernels.dispatch import Implementation, dispatch
from kernels.se_residual import kernel_tpu, reference


def se_residual(
  branch: Float[Array, "h w n c"],
  mean: Float[Array, "n c"],
  shortcut: Float[Array, "h w n c"],
  squeeze_weight: Float[Array, "c s"],
  squeeze_bias: Float[Array, " s"],
  excite_weight: Float[Array, "s c"],
  excite_bias: Float[Array, " c"],
  skip_gain: Float[Array, ""],
  *,
  keep: Float[Array, " n"] | None = None,
  alpha: float = 0.2,
  implementation: Implementation = "reference",
) -> Float[Array, "h w n c"]:
  """`reference.se_residual`, by a TPU kernel where one covers the arguments."""
  return dispatch(
    "se_residual",
    implementation,
    reference=functools.partial(reference.se_residual, alpha=alpha),
    kernel=functools.partial(
      kernel_tpu.se_residual, branch_scale=reference.branch_scale, alpha=alpha
    ),
    arguments=(
      branch,
      mean,
      shortcut,
      squeeze_weight,
      squeeze_bias,
      excite_weight,
      excite_bias,
      skip_gain,
      keep,
    ),
  )
