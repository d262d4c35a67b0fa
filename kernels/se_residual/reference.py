"""The last convolution of a branch, squeeze-excite and residual addition: the op's specification.

Paper B: https://arxiv.org/abs/2102.06171, section 2 and appendix C. The inner activation is a
plain ReLU, as in the released code and weights; the appendix says scaled GELU.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kernels.scaled_ws_conv import reference
from kernels.scaled_ws_conv.reference import Activation


def gate(
  mean: Float[Array, "n c"],
  squeeze_weight: Float[Array, "c s"],
  squeeze_bias: Float[Array, " s"],
  excite_weight: Float[Array, "s c"],
  excite_bias: Float[Array, " c"],
  dtype: jnp.dtype,
) -> Float[Array, "n c"]:
  """2 * sigmoid(fc(relu(fc(mean over space)))), in float32.

  Lies in (0, 2); the sigmoid of a large argument (17 and more) is rounded to that interval's end.

  The two products take operands of the compute dtype, as the MXU does, and sum in float32.
  """

  def fully_connected(x, weight, bias):
    product = jnp.dot(x.astype(dtype), weight.astype(dtype), preferred_element_type=jnp.float32)
    return product + bias.astype(jnp.float32)[None, :]

  hidden = jax.nn.relu(fully_connected(mean, squeeze_weight, squeeze_bias))
  return 2.0 * jax.nn.sigmoid(fully_connected(hidden, excite_weight, excite_bias))


def branch_scale(
  mean: Float[Array, "n c"],
  squeeze_weight: Float[Array, "c s"],
  squeeze_bias: Float[Array, " s"],
  excite_weight: Float[Array, "s c"],
  excite_bias: Float[Array, " c"],
  skip_gain: Float[Array, ""],
  keep: Float[Array, " n"] | None,
  *,
  alpha: float,
  dtype: jnp.dtype,
) -> Float[Array, "n c"]:
  """alpha * skip_gain * keep * gate, in float32."""
  scale = gate(mean, squeeze_weight, squeeze_bias, excite_weight, excite_bias, dtype)
  scale = scale * (alpha * skip_gain.astype(jnp.float32))
  return scale if keep is None else scale * keep.astype(jnp.float32)[:, None]


def se_residual(
  branch: Float[Array, "h w n c"],
  shortcut: Float[Array, "h w n c"],
  squeeze_weight: Float[Array, "c s"],
  squeeze_bias: Float[Array, " s"],
  excite_weight: Float[Array, "s c"],
  excite_bias: Float[Array, " c"],
  skip_gain: Float[Array, ""],
  keep: Float[Array, " n"] | None,
  *,
  alpha: float,
) -> Float[Array, "h w n c"]:
  """shortcut + alpha * skip_gain * keep * gate * branch.

  Args:
    branch: the residual branch, before squeeze-excite.
    shortcut: of the same shape and dtype; the result has both.
    squeeze_weight: of the first fully connected layer.
    squeeze_bias: likewise.
    excite_weight: of the second.
    excite_bias: likewise.
    skip_gain: learned scale, 0 at initialization.
    keep: stochastic depth, 0 or 1 for each example; None keeps all. Not rescaled by 1 / keep rate,
      as in the released code.
    alpha: 0.2 in the papers.
  """
  scale = branch_scale(
    jnp.mean(branch, axis=(0, 1), dtype=jnp.float32),
    squeeze_weight,
    squeeze_bias,
    excite_weight,
    excite_bias,
    skip_gain,
    keep,
    alpha=alpha,
    dtype=branch.dtype,
  )
  return shortcut + scale.astype(branch.dtype)[None, None] * branch


def conv_se_residual(
  x: Float[Array, "h w n i"],
  weight: Float[Array, "kh kw i c"],
  gain: Float[Array, " c"],
  bias: Float[Array, " c"],
  input_scale: Float[Array, ""] | None,
  shortcut: Float[Array, "h w n c"],
  *gate_and_keep: Float[Array, "..."] | None,
  activation: Activation | None,
  alpha: float,
) -> Float[Array, "h w n c"]:
  """`se_residual` of the branch that `scaled_ws_conv` ends.

  One op, since each needs the other: the squeeze is a sum over results of the convolution, and the
  convolution's cotangent is the result's, scaled.

  Args:
    x: see `scaled_ws_conv.reference.scaled_ws_conv`, as all up to `input_scale`.
    weight: likewise.
    gain: likewise.
    bias: likewise.
    input_scale: likewise.
    shortcut: see `se_residual`.
    *gate_and_keep: all that follow in `se_residual`.
    activation: of x, or None.
    alpha: see `se_residual`.
  """
  branch, _ = reference.scaled_ws_conv(
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
  )
  return se_residual(branch, shortcut, *gate_and_keep, alpha=alpha)
