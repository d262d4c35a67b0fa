"""The formulas of squeeze-excite that the reference and the kernels share."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kernels.fully_connected.formulas import Product, layer


class Gate(NamedTuple):
  """The weights of squeeze-excite's two fully connected layers.

  Biases are float32. So are weights, unless they have been rounded to the compute dtype already,
  which their gradients then have, too.

  Attributes:
    squeeze_weight: weights of the first layer.
    squeeze_bias: bias of the first layer.
    excite_weight: weights of the second layer.
    excite_bias: bias of the second layer.
  """

  squeeze_weight: Float[Array, "c s"]
  squeeze_bias: Float[Array, " s"]
  excite_weight: Float[Array, "s c"]
  excite_bias: Float[Array, " c"]


def gate_values(
  mean: Float[Array, "n c"], gate: Gate, *, dtype: jnp.dtype, product: Product
) -> Float[Array, "n c"]:
  """Returns 2 * sigmoid(fc(relu(fc(mean over space)))), in float32.

  Values lie in (0, 2); the sigmoid of a large argument (17 and more) is rounded to the end of that
  interval. The inner activation is a plain ReLU, as in the released code and weights; the paper's
  appendix says scaled GELU.

  Args:
    mean: mean of the branch over space.
    gate: weights of squeeze-excite.
    dtype: dtype to which the operands of both products are rounded for the MXU; sums are float32.
    product: computes both products.
  """
  fully_connected = functools.partial(layer, dtype=dtype, product=product)
  hidden = jax.nn.relu(fully_connected(mean, gate.squeeze_weight, gate.squeeze_bias))
  return 2.0 * jax.nn.sigmoid(fully_connected(hidden, gate.excite_weight, gate.excite_bias))


def branch_scale(
  mean: Float[Array, "n c"],
  gate: Gate,
  skip_gain: Float[Array, ""],
  keep: Float[Array, " n"] | None,
  *,
  alpha: float,
  dtype: jnp.dtype,
  product: Product,
) -> Float[Array, "n c"]:
  """Returns alpha * skip_gain * keep * gate, in float32; see `reference.se_residual`."""
  gate_of_mean = gate_values(mean, gate, dtype=dtype, product=product)
  scale = gate_of_mean * (alpha * skip_gain.astype(jnp.float32))
  return scale if keep is None else scale * keep.astype(jnp.float32)[:, None]
