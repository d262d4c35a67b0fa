"""The last convolution of a branch, squeeze-excite and residual addition: the op's specification.

Paper B: https://arxiv.org/abs/2102.06171, section 2 and appendix C.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kernels.fully_connected.formulas import rounded_product
from kernels.scaled_ws_conv.filters import StandardizedFilters
from kernels.scaled_ws_conv.formulas import Activation, PendingSum, Standardization
from kernels.scaled_ws_conv.reference import scaled_ws_convolution, standardized_convolution
from kernels.se_residual.formulas import Gate, branch_scale


def se_residual(
  branch: Float[Array, "h w n c"],
  shortcut: Float[Array, "h w n c"],
  gate: Gate,
  skip_gain: Float[Array, ""],
  keep: Float[Array, " n"] | None,
  *,
  alpha: float,
) -> Float[Array, "h w n c"]:
  """Returns shortcut + alpha * skip_gain * keep * gate * branch.

  Args:
    branch: the residual branch, before squeeze-excite.
    shortcut: array of the same shape and dtype as the branch; the result has both.
    gate: weights of squeeze-excite.
    skip_gain: learned scale, 0 at initialization.
    keep: mask of stochastic depth, 0 or 1 for each example; None keeps all. The branch is not
      rescaled by 1 / keep rate, as in the released code.
    alpha: weight of the branch, 0.2 in the papers.
  """
  scale = _scale(branch, gate, skip_gain, keep, alpha)
  return shortcut + scale.astype(branch.dtype)[None, None] * branch


def _scale(
  branch: Float[Array, "h w n c"],
  gate: Gate,
  skip_gain: Float[Array, ""],
  keep: Float[Array, " n"] | None,
  alpha: float,
) -> Float[Array, "n c"]:
  """Returns what `se_residual` multiplies the branch by, in float32."""
  mean = jnp.mean(branch, axis=(0, 1), dtype=jnp.float32)
  return branch_scale(
    mean, gate, skip_gain, keep, alpha=alpha, dtype=branch.dtype, product=rounded_product
  )


def conv_se_residual(
  x: Float[Array, "h w n i"],
  weight: Float[Array, "kh kw i c"],
  gain: Float[Array, " c"],
  bias: Float[Array, " c"],
  shortcut: Float[Array, "h w n c"],
  gate: Gate,
  skip_gain: Float[Array, ""],
  input_scale: Float[Array, ""] | None,
  keep: Float[Array, " n"] | None,
  *,
  activation: Activation | None,
  alpha: float,
  standardization: Standardization,
) -> Float[Array, "h w n c"]:
  """Applies a branch's last `scaled_ws_convolution`, then `se_residual`.

  The two are one op because each needs the other: the squeeze sums up the convolution's results,
  and the convolution's cotangent is the scaled cotangent of the op's result.

  Args:
    x: input of the convolution; see `scaled_ws_conv.reference` for all arguments that are not
      explained here.
    weight: filters of the convolution.
    gain: scale of each filter.
    bias: offset of each output channel.
    shortcut: see `se_residual`.
    gate: see `se_residual`.
    skip_gain: see `se_residual`.
    input_scale: factor of the activated input; None is 1.
    keep: see `se_residual`.
    activation: activation of x, or None.
    alpha: see `se_residual`.
    standardization: see `scaled_ws_conv.formulas.inverse_deviation`.
  """
  branch, _ = scaled_ws_convolution(
    x,
    weight,
    gain,
    bias,
    input_scale,
    stride=1,
    groups=1,
    pool=False,
    activation=activation,
    returns_input=False,
    standardization=standardization,
  )
  return se_residual(branch, shortcut, gate, skip_gain, keep, alpha=alpha)


def _last_convolution(
  x: Float[Array, "h w n i"],
  filters: StandardizedFilters,
  bias: Float[Array, " c"],
  activation: Activation | None,
) -> Float[Array, "h w n c"]:
  """Returns the branch, before squeeze-excite."""
  branch, _ = standardized_convolution(
    x,
    filters,
    bias,
    stride=1,
    groups=1,
    pool=False,
    activation=activation,
    returns_input=False,
  )
  return branch


def standardized_conv_se_residual(
  x: Float[Array, "h w n i"],
  filters: StandardizedFilters,
  bias: Float[Array, " c"],
  shortcut: Float[Array, "h w n c"],
  gate: Gate,
  skip_gain: Float[Array, ""],
  keep: Float[Array, " n"] | None,
  *,
  activation: Activation | None,
  alpha: float,
) -> Float[Array, "h w n c"]:
  """Applies a branch's last `standardized_convolution`, then `se_residual`.

  The arguments are those of `conv_se_residual`.
  """
  branch = _last_convolution(x, filters, bias, activation)
  return se_residual(branch, shortcut, gate, skip_gain, keep, alpha=alpha)


def standardized_conv_se(
  x: Float[Array, "h w n i"],
  filters: StandardizedFilters,
  bias: Float[Array, " c"],
  gate: Gate,
  skip_gain: Float[Array, ""],
  keep: Float[Array, " n"] | None,
  *,
  activation: Activation | None,
  alpha: float,
) -> tuple[Float[Array, "h w n c"], Float[Array, "n c"], Float[Array, "n c"]]:
  """Returns branch, scale and sink of a `PendingSum`.

  With the shortcut, `add_up` of these is `standardized_conv_se_residual`, whose arguments these
  are.
  """
  branch = _last_convolution(x, filters, bias, activation)
  return _pending(branch, _scale(branch, gate, skip_gain, keep, alpha))


@jax.custom_vjp
def _pending(
  branch: Float[Array, "h w n c"], scale: Float[Array, "n c"]
) -> tuple[Float[Array, "h w n c"], Float[Array, "n c"], Float[Array, "n c"]]:
  """Returns branch, scale and sink, whose cotangents are what `PendingSum` says."""
  return branch, scale, jnp.zeros_like(scale)


def _pending_forward(branch, scale):
  return _pending(branch, scale), scale


def _pending_backward(scale, cotangents):
  cotangent, products, _ = cotangents
  return scale.astype(cotangent.dtype)[None, None] * cotangent, products


_pending.defvjp(_pending_forward, _pending_backward)


@jax.custom_vjp
def add_up(pending: PendingSum) -> Float[Array, "h w n c"]:
  """Returns shortcut + scale * branch, rounding as `se_residual` does."""
  branch, shortcut, scale, _ = pending
  return shortcut + scale.astype(branch.dtype)[None, None] * branch


def _add_up_forward(pending):
  return add_up(pending), pending.branch


def _add_up_backward(branch, cotangent):
  wide = cotangent.astype(jnp.float32)
  products = jnp.sum(wide * branch.astype(jnp.float32), axis=(0, 1))
  return (PendingSum(cotangent, cotangent, products, jnp.sum(wide, axis=(0, 1))),)


add_up.defvjp(_add_up_forward, _add_up_backward)


def standardized_convolution_of_sum(
  pending: PendingSum,
  filters: StandardizedFilters,
  bias: Float[Array, " o"],
  *,
  activation: Activation | None,
  returns_input: bool,
) -> tuple[Float[Array, "h w n o"], Float[Array, "h w n c"] | None]:
  """Adds up and applies a plain 1x1 `standardized_convolution`, whose other arguments these are."""
  return standardized_convolution(
    add_up(pending),
    filters,
    bias,
    stride=1,
    groups=1,
    pool=False,
    activation=activation,
    returns_input=returns_input,
  )
