"""Computes the convolution ops in float64, with all gradients, for the tests of their kernels."""

import functools

import jax
import jax.numpy as jnp
import numpy as np


def gelu(x):
  """Returns twice the gelu in its tanh form."""
  return x * (1 + jnp.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x * x * x)))


def gelu_erf(x):
  """Returns twice the exact gelu."""
  return x * (1 + jax.lax.erf(x / np.sqrt(2)))


def standardize(weight, gain, epsilon=None):
  """Bounds the variance as the released code does or, with an epsilon, adds it as timm does."""
  fan_in = weight.shape[0] * weight.shape[1] * weight.shape[2]
  mean = jnp.mean(weight, axis=(0, 1, 2), keepdims=True)
  variance = jnp.mean(jnp.square(weight - mean), axis=(0, 1, 2), keepdims=True)
  if epsilon is None:
    variance_sum = jnp.maximum(variance * fan_in, 1e-4)
  else:
    variance_sum = (variance + epsilon) * fan_in
  return (weight - mean) * gain[None, None, None] / jnp.sqrt(variance_sum)


def convolve(
  x,
  weight,
  gain,
  bias,
  scale,
  *,
  stride=1,
  groups=1,
  pool=False,
  activation=None,
  epsilon=None,
):
  """Computes what `scaled_ws_convolution` specifies, in the operands' precision."""
  if activation is not None:
    x = activation(x)
  if pool:
    height, width, n, c = x.shape
    x = jnp.mean(x.reshape(height // 2, 2, width // 2, 2, n, c), axis=(1, 3))
  y = _convolve_plainly(x, scale * standardize(weight, gain, epsilon), stride, groups)
  return y + bias[None, None, None]


def stem_convolutions(images, weights, gains, biases, scale, *, activation, epsilon=None):
  x = images
  for i, (stride, *parameters) in enumerate(zip((2, 1, 1, 2), weights, gains, biases, strict=True)):
    x = convolve(
      x,
      *parameters,
      scale if i else 1.0,
      stride=stride,
      activation=activation if i else None,
      epsilon=epsilon,
    )
  return x


def conv_se_residual(
  x,
  weight,
  gain,
  bias,
  shortcut,
  gate,
  skip_gain,
  scale,
  keep,
  *,
  alpha,
  activation=None,
  epsilon=None,
):
  """Computes what `conv_se_residual` specifies, in the operands' precision."""
  branch = convolve(x, weight, gain, bias, scale, activation=activation, epsilon=epsilon)
  mean = jnp.mean(branch, axis=(0, 1))
  hidden = jnp.maximum(mean @ gate.squeeze_weight + gate.squeeze_bias[None], 0)
  value = 2 / (1 + jnp.exp(-(hidden @ gate.excite_weight + gate.excite_bias[None])))
  if keep is not None:
    value = value * keep.astype(value.dtype)[:, None]
  return shortcut + alpha * skip_gain * value[None, None] * branch


def _convolve_plainly(x, weight, stride, groups):
  """Adds up a matrix product for each pixel of the filter: XLA's convolution is slow in float64."""
  kernel_height, kernel_width, inputs, _ = weight.shape
  (top, bottom), (left, right) = jax.lax.padtype_to_pads(
    x.shape[:2], weight.shape[:2], (stride, stride), "SAME"
  )
  height, width = (-(-side // stride) for side in x.shape[:2])
  x = jnp.pad(x, ((top, bottom), (left, right), (0, 0), (0, 0)))
  x = x.reshape(*x.shape[:3], groups, inputs)
  weight = weight.reshape(*weight.shape[:3], groups, -1)
  y = 0
  for i in range(kernel_height):
    for j in range(kernel_width):
      rows = slice(i, i + stride * (height - 1) + 1, stride)
      columns = slice(j, j + stride * (width - 1) + 1, stride)
      y += jnp.einsum("hwngi,igo->hwngo", x[rows, columns], weight[i, j])
  return y.reshape(*y.shape[:3], -1)


def value_and_gradients(function, arguments, cotangent):
  """Returns the leaves of the result and of the gradients of all arguments."""
  value, pull_back = jax.vjp(function, *arguments)
  return jax.tree.leaves((value, pull_back(cotangent)))


def compiled_once(function, arguments, cotangent):
  """Returns the same, from one program."""
  return run_once(functools.partial(value_and_gradients, function), (arguments, cotangent))


def run_once(function, arguments):
  """Returns a function's result, from one program."""
  return jax.jit(function)(*arguments)


def in_float64(function, arguments, cotangent):
  """Returns the same, computed in float64, as NumPy arrays."""
  # NumPy converts, since JAX would compile a program for each shape.
  wide = jax.tree.map(lambda x: np.asarray(x).astype(np.float64), (arguments, cotangent))
  with jax.enable_x64(True):
    return [np.asarray(x) for x in compiled_once(function, *wide)]


def relative_errors(actual, exact):
  """Returns the norm of the error over the norm of the exact values, for each array."""
  errors = [
    np.linalg.norm(np.asarray(ours).astype(np.float64) - theirs) / np.linalg.norm(theirs)
    for ours, theirs in zip(actual, exact, strict=True)
  ]
  # What a kernel has not written is NaN, which `max` passes over.
  assert not np.isnan(errors).any()
  return errors
