"""Defines activations and the gains for unit variance: gain * f(x) for x from N(0, 1).

A gain is 1 / sqrt(Var[f(x)]) (paper B, section 2), with every digit that the released code prints.
`glu` is left out because it halves the channels, which no place in the network allows.
"""

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp

from kernels.scaled_ws_conv.formulas import Activation
from nfnet.errors import quoted


@dataclasses.dataclass(frozen=True)
class ScaledActivation:
  """Multiplies an activation by its gain: x -> gain * function(x).

  The two are separate because a convolution can multiply its weights by the gain.

  Attributes:
    function: elementwise function of float32 values.
    gain: constant factor.
  """

  function: Activation
  gain: float

  def __call__(self, x: jax.Array) -> jax.Array:
    """Returns gain * function(x)."""
    return self.function(x) * self.gain


GELU_GAIN = 1.7015043497085571
"""Gain of gelu, for its tanh form and for the exact one."""

_SLOPE = math.sqrt(2 / math.pi)
_CUBIC = 0.044715 * _SLOPE


@jax.custom_jvp
def _double_gelu(x: jax.Array) -> jax.Array:
  """Computes x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))): twice the tanh form of gelu.

  It is written with as few operations as possible, because on a TPU the vector unit, not the matrix
  unit, limits the kernels that apply it.
  """
  return x * (1 + jnp.tanh(x * (_SLOPE + _CUBIC * (x * x))))


@_double_gelu.defjvp
def _double_gelu_jvp(primals, tangents):
  (x,), (tangent,) = primals, tangents
  square = x * x
  tanh = jnp.tanh(x * (_SLOPE + _CUBIC * square))
  value = 1 + tanh
  slope = value * (1 + x * (1 - tanh) * (_SLOPE + 3 * _CUBIC * square))
  return x * value, slope * tangent


@jax.custom_jvp
def _double_gelu_erf(x: jax.Array) -> jax.Array:
  """Computes x (1 + erf(x / sqrt(2))): twice the exact gelu, written as PyTorch computes it.

  `jax.nn.gelu` computes it from erfc, which Pallas kernels for TPU do not have.
  """
  return x * (1 + jax.lax.erf(x * math.sqrt(0.5)))


@_double_gelu_erf.defjvp
def _double_gelu_erf_jvp(primals, tangents):
  (x,), (tangent,) = primals, tangents
  value = 1 + jax.lax.erf(x * math.sqrt(0.5))
  slope = value + x * (_SLOPE * jnp.exp(-0.5 * (x * x)))
  return x * value, slope * tangent


_SCALED_ACTIVATIONS = {
  "celu": ScaledActivation(jax.nn.celu, 1.270926833152771),
  "elu": ScaledActivation(jax.nn.elu, 1.2716004848480225),
  "gelu": ScaledActivation(_double_gelu, GELU_GAIN / 2),
  "gelu_erf": ScaledActivation(_double_gelu_erf, GELU_GAIN / 2),
  "identity": ScaledActivation(lambda x: x, 1.0),
  "leaky_relu": ScaledActivation(jax.nn.leaky_relu, 1.70590341091156),
  "log_sigmoid": ScaledActivation(jax.nn.log_sigmoid, 1.9193484783172607),
  "log_softmax": ScaledActivation(jax.nn.log_softmax, 1.0002083778381348),
  "relu": ScaledActivation(jax.nn.relu, 1.7139588594436646),
  "relu6": ScaledActivation(jax.nn.relu6, 1.7131484746932983),
  "selu": ScaledActivation(jax.nn.selu, 1.0008515119552612),
  "sigmoid": ScaledActivation(jax.nn.sigmoid, 4.803835391998291),
  "silu": ScaledActivation(jax.nn.silu, 1.7881293296813965),
  "soft_sign": ScaledActivation(jax.nn.soft_sign, 2.338853120803833),
  "softplus": ScaledActivation(jax.nn.softplus, 1.9203323125839233),
  "tanh": ScaledActivation(jnp.tanh, 1.5939117670059204),
}

ACTIVATIONS = tuple(_SCALED_ACTIVATIONS)
"""Names. "gelu" is the tanh form of the released code, "gelu_erf" the exact form that timm uses."""


Numerics = Literal["released", "timm"]
"""The formulas that apply the parameters, where the code released with paper B and timm differ."""


def scaled_activation(name: str, numerics: Numerics) -> ScaledActivation:
  """Returns the activation called `name`.

  Every call returns the same object, so that JAX's caches see a single function.

  Args:
    name: one of `ACTIVATIONS`.
    numerics: whose form "gelu" has: the released code's, with tanh, or timm's, which is exact.

  Raises:
    ValueError: there is no such activation.
  """
  if not isinstance(name, str) or name not in _SCALED_ACTIVATIONS:
    raise ValueError(f"unknown activation {quoted(name)}; choose one of {', '.join(ACTIVATIONS)}")
  if (name, numerics) == ("gelu", "timm"):
    name = "gelu_erf"
  return _SCALED_ACTIVATIONS[name]
