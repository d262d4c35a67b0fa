"""What tests of the convolution kernels share: the op in float64, with all gradients."""

import jax
import jax.numpy as jnp
import numpy as np


def gelu(x):
  """Twice the gelu in its tanh form."""
  return x * (1 + jnp.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x * x * x)))


def standardize(weight, gain):
  fan_in = weight.shape[0] * weight.shape[1] * weight.shape[2]
  mean = jnp.mean(weight, axis=(0, 1, 2), keepdims=True)
  variance = jnp.mean(jnp.square(weight - mean), axis=(0, 1, 2), keepdims=True)
  return (weight - mean) * gain[None, None, None] / jnp.sqrt(jnp.maximum(variance * fan_in, 1e-4))


def convolve(x, weight, gain, bias, scale, *, stride=1, groups=1, pool=False, activation=None):
  """As `scaled_ws_conv` says, in the operands' precision."""
  if activation is not None:
    x = activation(x)
  if pool:
    height, width, n, c = x.shape
    x = jnp.mean(x.reshape(height // 2, 2, width // 2, 2, n, c), axis=(1, 3))
  y = jax.lax.conv_general_dilated(
    x,
    scale * standardize(weight, gain),
    (stride, stride),
    "SAME",
    dimension_numbers=("HWNC", "HWIO", "HWNC"),
    feature_group_count=groups,
  )
  return y + bias[None, None, None]


def stem(images, weights, gains, biases, scale, *, activation):
  x = images
  for i, (stride, *parameters) in enumerate(zip((2, 1, 1, 2), weights, gains, biases, strict=True)):
    x = convolve(
      x,
      *parameters,
      scale if i else 1.0,
      stride=stride,
      activation=activation if i else None,
    )
  return x


def conv_se_residual(
  x, weight, gain, bias, shortcut, w0, b0, w1, b1, skip_gain, *, scale, keep, alpha, activation=None
):
  """As `conv_se_residual` says, in the operands' precision."""
  branch = convolve(x, weight, gain, bias, scale, activation=activation)
  hidden = jnp.maximum(jnp.mean(branch, axis=(0, 1)) @ w0 + b0[None], 0)
  gate = 2 / (1 + jnp.exp(-(hidden @ w1 + b1[None])))
  if keep is not None:
    gate = gate * keep.astype(gate.dtype)[:, None]
  return shortcut + alpha * skip_gain * gate[None, None] * branch


def value_and_gradients(function, arguments, cotangent):
  """Leaves of the result and of the gradients of all arguments."""
  value, pull_back = jax.vjp(function, *arguments)
  return jax.tree.leaves((value, pull_back(cotangent)))


def in_float64(function, arguments, cotangent):
  """The same, computed in float64 and given back as NumPy arrays."""
  with jax.enable_x64(True):
    wide = jax.tree.map(
      lambda x: jnp.asarray(np.asarray(x.astype(jnp.float32)), jnp.float64), (arguments, cotangent)
    )
    return [np.asarray(x) for x in value_and_gradients(function, *wide)]


def relative_errors(actual, exact):
  """Root mean square of the error over that of the exact values, for each array."""
  return [
    np.linalg.norm(np.asarray(ours.astype(jnp.float32), np.float64) - theirs)
    / np.linalg.norm(theirs)
    for ours, theirs in zip(actual, exact, strict=True)
  ]
