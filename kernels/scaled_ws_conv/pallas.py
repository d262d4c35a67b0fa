"""The convolution with implementation="pallas": what the kernels cover, and how they are called."""

import functools

import jax
import jax.extend
import jax.numpy as jnp
from jaxtyping import Array, Float

from kernels.scaled_ws_conv.formulas import Activation, Standardization
from kernels.scaled_ws_conv.problem import problem_of
from kernels.scaled_ws_conv.tile import choose_both
from kernels.scaled_ws_conv.vjp import convolve
from kernels.tpu import LANES, SUBLANES

_PRIMITIVES_NOT_ON_TPU = frozenset({"erfc", "expm1"})
"""Operations of activations that Pallas cannot lower for TPU, as of jax 0.10."""


def scaled_ws_convolution(
  x: Float[Array, "h w n c"],
  weight: Float[Array, "kh kw i o"],
  gain: Float[Array, " o"],
  bias: Float[Array, " o"],
  input_scale: Float[Array, ""] | None,
  *,
  stride: int,
  groups: int,
  pool: bool,
  activation: Activation | None,
  returns_input: bool,
  standardization: Standardization,
) -> tuple[Float[Array, "h2 w2 n o"], Float[Array, "h w n c"] | None]:
  """Computes what the reference computes, from the same arguments.

  Raises:
    NotImplementedError: for filters other than 1x1 and 3x3, strides above 2, odd sides with a
      stride or pooling, channels that do not fill tiles, activations other than bfloat16 and
      float32, parameters other than float32, and what `check_activation` refuses.
  """
  check(x, weight, gain, bias, activation)
  problem = problem_of(
    x.shape,
    weight.shape,
    stride=stride,
    groups=groups,
    pool=pool,
    returns_input=returns_input,
    itemsize=x.dtype.itemsize,
  )
  passes = choose_both(problem)
  height, width, images, channels = x.shape
  x = jnp.pad(x, ((0, 0), (0, 0), (0, problem.images - images), (0, 0)))
  result, x = convolve(
    passes,
    activation,
    standardization,
    x.reshape(problem.input_shape),
    weight.reshape(-1, *weight.shape[2:]),
    gain,
    bias,
    jnp.ones((), jnp.float32) if input_scale is None else input_scale.astype(jnp.float32),
  )
  return (
    result[:, :, 0, :images],
    x.reshape(height, width, -1, channels)[:, :, :images] if returns_input else None,
  )


def check(
  x: Float[Array, "h w n c"],
  weight: Float[Array, "kh kw i o"],
  gain: Float[Array, " o"],
  bias: Float[Array, " o"],
  activation: Activation | None,
) -> None:
  """Checks that the kernels cover these dtypes and this activation.

  Raises:
    NotImplementedError: the kernels do not cover them.
  """
  if {p.dtype for p in (weight, gain, bias)} != {jnp.dtype(jnp.float32)}:
    raise NotImplementedError("parameters other than float32")
  if x.dtype not in (jnp.bfloat16, jnp.float32):
    raise NotImplementedError("activations other than bfloat16 and float32")
  if activation is not None:
    check_activation(activation)


def check_activation(activation: Activation) -> None:
  """Checks that each intermediate value has the input's shape or is a scalar, and can be computed.

  Raises:
    NotImplementedError: the kernels do not cover the activation.
  """
  if reason := _reason_against(activation):
    raise NotImplementedError(reason)


@functools.cache
def _reason_against(activation: Activation) -> str | None:
  """Returns why the kernels do not cover an activation, or None if they do."""
  shape = (SUBLANES, LANES)

  def equations(jaxpr):
    for equation in jaxpr.eqns:
      yield equation
      for inner in jax.extend.core.jaxprs_in_params(equation.params):
        yield from equations(inner)

  jaxpr = jax.make_jaxpr(activation)(jax.ShapeDtypeStruct(shape, jnp.float32)).jaxpr
  for equation in equations(jaxpr):
    if {variable.aval.shape for variable in equation.outvars} - {shape, ()}:
      return "an activation that is not elementwise"
    if equation.primitive.name in _PRIMITIVES_NOT_ON_TPU:
      return f"an activation with {equation.primitive.name}"
  return None
