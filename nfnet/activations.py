"""Activations scaled to keep unit variance: gamma * f(x) for x from N(0, 1).

Gamma is 1 / sqrt(Var[f(x)]), as in the released code (paper B, section 2), to every digit printed
there. `glu` is left out: it halves the channels, which no place in the network allows.
"""

import functools

import jax
import jax.numpy as jnp

from kernels.scaled_ws_conv.reference import Activation

_FUNCTIONS_AND_GAMMAS: dict[str, tuple[Activation, float]] = {
  "celu": (jax.nn.celu, 1.270926833152771),
  "elu": (jax.nn.elu, 1.2716004848480225),
  "gelu": (functools.partial(jax.nn.gelu, approximate=True), 1.7015043497085571),
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

ACTIVATIONS = tuple(_FUNCTIONS_AND_GAMMAS)
"""Names. "gelu" is the tanh form of the released code, "gelu_erf" the exact one of timm."""


@functools.cache
def scaled_activation(name: str) -> Activation:
  """The same function object at each call, so that JAX's caches see one function.

  Raises:
    ValueError: no such activation.
  """
  if name not in _FUNCTIONS_AND_GAMMAS:
    raise ValueError(f"activation {name!r} is none of {', '.join(ACTIVATIONS)}")
  function, gamma = _FUNCTIONS_AND_GAMMAS[name]

  def scaled(x):
    return function(x) * gamma

  scaled.__name__ = f"scaled_{name}"
  return scaled
