"""Convolution with scaled weight standardization as Pallas TPU kernels, with all derivatives."""

import dataclasses
import functools
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float

from kernels.scaled_ws_conv import backward_tpu, forward_tpu, standardize_tpu
from kernels.scaled_ws_conv.geometry import Geometry, convolution
from kernels.scaled_ws_conv.tile import choose
from kernels.tpu import IMAGES_MULTIPLE, LANES, SUBLANES


def scaled_ws_conv(
  x: Float[Array, "h w n c"],
  weight: Float[Array, "kh kw i o"],
  gain: Float[Array, " o"],
  bias: Float[Array, " o"],
  input_scale: Float[Array, ""] | None,
  *,
  stride: int,
  groups: int,
  pool: bool,
  activation,
  returns_input: bool,
  variance_floor: float,
) -> tuple[Float[Array, "h2 w2 n o"], Float[Array, "h w n c"] | None]:
  """As the reference; the floor is its constant.

  Raises:
    NotImplementedError: for filters other than 1x1 and 3x3, strides above 2, sides of a stride or
      pooling that are odd, channels that do not fill tiles, other dtypes than bfloat16 and float32
      for activations and float32 for parameters.
  """
  check(x, weight, gain, bias, activation)
  geometry = geometry_of(
    x.shape,
    weight.shape,
    stride=stride,
    groups=groups,
    pool=pool,
    returns_input=returns_input,
    itemsize=x.dtype.itemsize,
  )
  for direction in ("forward", "backward"):
    choose(geometry, direction)
  height, width, images, channels = x.shape
  x = jnp.pad(x, ((0, 0), (0, 0), (0, geometry.images - images), (0, 0)))
  scale = jnp.ones((), jnp.float32) if input_scale is None else input_scale.astype(jnp.float32)
  static = geometry, activation, variance_floor
  x, weight = x.reshape(geometry.input_shape), weight.reshape(-1, *weight.shape[2:])
  result, x = convolve(*static, x, weight, gain, bias, scale)
  return (
    result[:, :, 0, :images],
    x.reshape(height, width, -1, channels)[:, :, :images] if returns_input else None,
  )


def check(
  x: Float[Array, "h w n c"],
  weight: Float[Array, "kh kw i o"],
  gain: Float[Array, " o"],
  bias: Float[Array, " o"],
  activation,
) -> None:
  """That the kernels cover these dtypes and this activation.

  Raises:
    NotImplementedError: they do not.
  """
  if {p.dtype for p in (weight, gain, bias)} != {jnp.dtype(jnp.float32)}:
    raise NotImplementedError("parameters other than float32")
  if x.dtype not in (jnp.bfloat16, jnp.float32):
    raise NotImplementedError("activations other than bfloat16 and float32")
  if activation is not None and not _is_elementwise(activation):
    raise NotImplementedError("an activation that is not elementwise")


def geometry_of(
  x_shape: tuple[int, ...],
  weight_shape: tuple[int, ...],
  *,
  stride: int,
  groups: int,
  pool: bool,
  itemsize: int,
  ends_branch: bool = False,
  returns_input: bool = False,
) -> Geometry:
  """What the kernels compute for arguments of these shapes; see `scaled_ws_conv` and `Geometry`."""
  height, width, images, channels = x_shape
  kernel_pixels, _, inputs, outputs = weight_shape
  if (kernel_pixels, weight_shape[1]) not in ((1, 1), (3, 3)):
    raise NotImplementedError("filters other than 1x1 and 3x3")
  if pool and (kernel_pixels, stride, groups) != (1, 1, 1):
    raise NotImplementedError("pooling before other than plain 1x1 convolutions")
  if stride > 2 or (kernel_pixels == 1 and stride > 1):
    raise NotImplementedError("strides above 2, or above 1 of a 1x1 convolution")
  phases = 2 if pool else stride
  if height % phases or width % phases:
    raise NotImplementedError("pooling or stride on an odd side")
  if groups > 1 and (inputs % LANES or outputs // groups % LANES):
    raise NotImplementedError("groups that do not fill the lanes")
  if inputs % SUBLANES:
    raise NotImplementedError("input channels that do not fill the sublanes")
  return convolution(
    height=height // phases,
    width=width // phases,
    images=images + -images % IMAGES_MULTIPLE,
    in_channels=channels,
    out_channels=outputs,
    kernel_pixels=kernel_pixels,
    stride=stride,
    groups=groups,
    pool=pool,
    ends_branch=ends_branch,
    returns_input=returns_input,
    itemsize=itemsize,
  )


@functools.cache
def _is_elementwise(activation) -> bool:
  """Whether all values on the way to the result are as many as the input's, or constants."""
  shape = (SUBLANES, LANES)

  def shapes(jaxpr):
    for equation in jaxpr.eqns:
      yield from (variable.aval.shape for variable in equation.outvars)
      for inner in jax.extend.core.jaxprs_in_params(equation.params):
        yield from shapes(inner)

  jaxpr = jax.make_jaxpr(activation)(jax.ShapeDtypeStruct(shape, jnp.float32)).jaxpr
  return set(shapes(jaxpr)) <= {shape, ()}


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def convolve(
  geometry: Geometry,
  activation,
  variance_floor: float,
  x: Float[Array, "h a w b n c"],
  weight: Float[Array, "taps i o"],
  gain: Float[Array, " o"] | None,
  bias: Float[Array, " o"],
  scale: Float[Array, ""],
) -> tuple[Float[Array, "h w q n o"], Float[Array, "h a w b n c"] | None]:
  """The result, and the input if the geometry gives it back.

  Without a gain, the weights are taken as they are. There is no derivative by the scale.
  """
  static = geometry, activation, variance_floor
  result, _, _ = forward(*static, x, weight, gain, bias, scale)
  return result, x if geometry.returns_input else None


def forward(
  geometry: Geometry,
  activation,
  variance_floor: float,
  x: Float[Array, "h a w b n c"],
  weight: Float[Array, "taps i o"],
  gain: Float[Array, " o"] | None,
  bias: Float[Array, " o"],
  scale: Float[Array, ""],
) -> tuple[Float[Array, "h w q n o"], Float[Array, "n o"] | None, tuple[Any, ...]]:
  """The result, its mean at the end of a branch, and what `backward` needs."""
  result, statistics, mean = forward_tpu.convolve(
    x,
    weight,
    None if gain is None else gain[None],
    bias[None],
    scale[None],
    blocks=choose(geometry, "forward"),
    activation=activation,
    variance_floor=variance_floor,
  )
  return result, mean, (x, weight, gain, scale, statistics)


def backward(
  geometry: Geometry,
  activation,
  variance_floor: float,
  residuals: tuple[Any, ...],
  cotangent: Float[Array, "h w q n o"],
  *,
  result_scale: Float[Array, "n o"] | None = None,
  mean_cotangent: Float[Array, "n o"] | None = None,
  input_cotangent: Float[Array, "h a w b n c"] | None = None,
  differentiates_input: bool = True,
) -> tuple[Array | None, Array, Array | None, Array | None]:
  """Gradients of input, weight, gain and, but at the end of a branch, bias.

  Args:
    geometry: of the convolution.
    activation: of the input, or None.
    variance_floor: see the reference.
    residuals: of `forward`.
    cotangent: see `backward_tpu.gradients`.
    result_scale: likewise.
    mean_cotangent: likewise.
    input_cotangent: likewise.
    differentiates_input: likewise.
  """
  x, weight, gain, scale, statistics = residuals
  # A constant arrives as NumPy's.
  scale = jnp.asarray(scale)
  x_gradient, standardized_gradient, bias_gradient = backward_tpu.gradients(
    x,
    cotangent,
    result_scale,
    mean_cotangent,
    input_cotangent,
    weight,
    statistics,
    scale[None],
    blocks=choose(geometry, "backward"),
    activation=activation,
    differentiates_input=differentiates_input,
  )
  if gain is None:
    weight_gradient, gain_gradient = jnp.sum(standardized_gradient, axis=0) * scale, None
  else:
    weight_gradient, gain_gradient = standardize_tpu.gradient(
      weight, standardized_gradient, gain[None], scale[None], variance_floor=variance_floor
    )
  return x_gradient, weight_gradient, gain_gradient, bias_gradient


def _convolve_forward(geometry, activation, variance_floor, *operands):
  values = [None if one is None else one.value for one in operands]
  result, _, residuals = forward(geometry, activation, variance_floor, *values)
  # What nobody asks for is not computed: the gradient of the images.
  static = _Static(operands[0].perturbed)
  return (result, values[0] if geometry.returns_input else None), (residuals, static)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _Static:
  differentiates_input: bool


def _convolve_backward(geometry, activation, variance_floor, residuals, cotangents):
  residuals, static = residuals
  cotangent, input_cotangent = map(_materialized, cotangents)
  gradients = backward(
    geometry,
    activation,
    variance_floor,
    residuals,
    cotangent,
    input_cotangent=input_cotangent,
    differentiates_input=static.differentiates_input,
  )
  return *gradients, None


def _materialized(cotangent):
  if not isinstance(cotangent, SymbolicZero):
    return cotangent
  return jnp.zeros(cotangent.aval.shape, cotangent.aval.dtype)


convolve.defvjp(_convolve_forward, _convolve_backward, symbolic_zeros=True)
