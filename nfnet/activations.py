"""Activations and the gains that keep unit variance: gamma * f(x) for x from N(0, 1).

Gamma is 1 / sqrt(Var[f(x)]), as in the released code (paper B, section 2), to every digit printed
there. `glu` is left out: it halves the channels, which no place in the network allows.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp

from kernels.scaled_ws_conv.formulas import Activation


@dataclasses.dataclass(frozen=True)
class ScaledActivation:
  """gain * function(x).

  The two are apart because a convolution can put the gain into its weights.

  Attributes:
    function: of float32.
    gain: constant factor.
  """

  function: Activation
  gain: float

  def __call__(self, x: jax.Array) -> jax.Array:
    """The scaled activation."""
    return self.function(x) * self.gain


_SLOPE = math.sqrt(2 / math.pi)
_CUBIC = 0.044715 * _SLOPE


@jax.custom_jvp
def _double_gelu(x: jax.Array) -> jax.Array:
  """x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))): twice the gelu in its tanh form.

  Written for as few operations as possible: beside a TPU's matrix units, it is they that limit.
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


_FUNCTIONS_AND_GAINS: dict[str, tuple[Activation, float]] = {
  "celu": (jax.nn.celu, 1.270926833152771),
  "elu": (jax.nn.elu, 1.2716004848480225),
  "gelu": (_double_gelu, 1.7015043497085571 / 2),
  "gelu_erf": (functools.partial(jax.nn.gelu, approximate=False), 1.7015043497085571),
  "identity": (lambda x: x, 1.0),
  "leaky_relu": (jax.nn.leaky_relu, 1.70590341091156),
  "log_sigmoid": (jax.nn.log_sigmoid, 1.9193484783172607),
  "log_softmax": (jax.nn.log_softmax, 1.0002083778381348),
  "relu": (jax.nn.relu, 1.7139588594436646),
  "relu6": (jax.nn.relu6, 1.7131484746932983),
  "selu": (jax.nn.selu, 1.0008515119552612),
  "sigmoid": (jax.nn.sigmoid, 4.803835391998291),
  "silu": (jax.nn.silu, 1.7881293296813965),
  "soft_sign": (jax.nn.soft_sign, 2.338853120803833),
  "softplus": (jax.nn.softplus, 1.9203323125839233),
  "tanh": (jnp.tanh, 1.5939117670059204),
}

ACTIVATIONS = tuple(_FUNCTIONS_AND_GAINS)
"""Names. "gelu" is the tanh form of the released code, "gelu_erf" the exact one of timm."""


@functools.cache
def scaled_activation(name: str) -> ScaledActivation:
  """The same object at each call, so that JAX's caches see one function.

  Raises:
    ValueError: no such activation.
  """
  if name not in _FUNCTIONS_AND_GAINS:
    raise ValueError(f"activation {name!r} is none of {', '.join(ACTIVATIONS)}")
  return ScaledActivation(*_FUNCTIONS_AND_GAINS[name])
