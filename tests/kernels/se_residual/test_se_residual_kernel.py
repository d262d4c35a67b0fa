"""The kernels against float64, as the TPU interpreter runs them, looking for races.

`test_scaled_ws_conv_kernel` explains where the tolerances come from.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec as P

from kernels.scaled_ws_conv import pallas as conv_pallas
from kernels.scaled_ws_conv import reference as conv_reference
from kernels.scaled_ws_conv import tile as conv_tile
from kernels.scaled_ws_conv.formulas import PendingSum
from kernels.scaled_ws_conv.pallas import raw_filters
from kernels.scaled_ws_conv.problem import problem_of
from kernels.se_residual import pallas, reference, residual_tpu
from kernels.se_residual.formulas import Gate
from kernels.se_residual.problem import Problem
from kernels.se_residual.tile import choose
from kernels.se_residual.vjp import SumBlocks, add_up, end_branch
from tests.kernels import exact
from tests.kernels.slow_cases import slowly

pytestmark = pytest.mark.usefixtures("interpreted")
STATIC = dict(activation=exact.gelu, alpha=0.2, standardization="released")
kernel = functools.partial(pallas.conv_se_residual, **STATIC)
by_xla = functools.partial(reference.conv_se_residual, **STATIC)
SCALE = 0.7
# Of the relative error: roundings of the scale, its product with the branch, and the sum.
ROUNDINGS = 3
EPSILON = {"float32": 2.0**-24, "bfloat16": 2.0**-9}
ERROR_OF_REFERENCE = {"float32": 4.0, "bfloat16": 1.25}
"""Factor by which a kernel's error may be larger: see `test_scaled_ws_conv_kernel`."""


def problem(height, width, images, inputs, channels, dtype="float32", squeeze=16):
  """Returns operands that are differentiated, the mask of stochastic depth, and the cotangent."""
  generator = np.random.default_rng(0)

  def draw(*shape, scale=1.0, dtype="float32"):
    return jnp.asarray(scale * generator.standard_normal(shape), dtype)

  wide = height, width, images, channels
  operands = (
    draw(height, width, images, inputs, dtype=dtype),
    draw(1, 1, inputs, channels),
    draw(channels),
    draw(channels),
    draw(*wide, dtype=dtype),
    Gate(
      squeeze_weight=draw(channels, squeeze, scale=channels**-0.5),
      # Away from the ReLU's kink, where a rounding decides about a whole gradient.
      squeeze_bias=jnp.where(jnp.arange(squeeze) % 4 == 0, -5.0, 5.0),
      excite_weight=draw(squeeze, channels, scale=squeeze**-1),
      excite_bias=draw(channels),
    ),
    # Large enough that the gate is a good part of the sum.
    8 + draw(),
  )
  # The first image is kept, the second is dropped.
  keep = jnp.asarray(np.arange(images) % 2 == 0, jnp.float32)
  return operands, keep, draw(*wide, dtype=dtype)


def of_operands(function, keep):
  """Returns the function of what is differentiated."""
  return lambda *operands: function(*operands, jnp.float32(SCALE), keep)


def run(function, operands, keep, cotangent, compute=exact.compiled_once):
  """Returns value and gradients."""
  return compute(of_operands(function, keep), operands, cotangent)


def run_reference(operands, keep, cotangent):
  """Returns value and gradients of the reference."""
  return run(by_xla, operands, keep, cotangent, compute=exact.compiled_once)


def check(operands, keep, cotangent, run=run, kernel=kernel):
  dtype = str(cotangent.dtype)
  expected = exact.in_float64(
    lambda *operands: exact.conv_se_residual(
      *operands, SCALE, keep, activation=exact.gelu, alpha=0.2
    ),
    operands,
    cotangent,
  )
  actual = run(kernel, operands, keep, cotangent)
  dtypes = [one.dtype for one in jax.tree.leaves((cotangent, operands))]
  assert [one.dtype for one in actual] == dtypes
  errors = exact.relative_errors(actual, expected)
  longest = cotangent[..., 0].size
  # Three products' roundings on the way to the gate, and those of three on the way back.
  assert max(errors) < 12 * (EPSILON[dtype] + EPSILON["float32"] * np.sqrt(longest))
  theirs = exact.relative_errors(run_reference(operands, keep, cotangent), expected)
  for one, ours, by_reference in zip(actual, errors, theirs, strict=True):
    # Of a single number, the skip gain's gradient, either error may be small by chance.
    assert one.ndim == 0 or ours < ERROR_OF_REFERENCE[dtype] * by_reference + EPSILON["float32"]


def residual_problem(shape, dtype):
  names = "height", "width", "images", "channels"
  return Problem(**dict(zip(names, shape, strict=True)), itemsize=dtype.itemsize)


@pytest.mark.parametrize(
  ("shape", "dtype"),
  [
    # Each core has half of the images, or half of the channels, or there is one core's work.
    ((2, 2, 32, 128), "bfloat16"),
    ((2, 4, 16, 256), "float32"),
    ((1, 3, 16, 384), "float32"),
    slowly((2, 5, 64, 256), "bfloat16"),
    slowly((2, 2, 32, 128), "float32"),
    slowly((2, 4, 16, 256), "bfloat16"),
    slowly((1, 3, 16, 384), "bfloat16"),
    slowly((2, 5, 64, 256), "float32"),
  ],
)
def test_the_addition_and_the_sums_against_float64(shape, dtype):
  generator = np.random.default_rng(1)
  branch, shortcut, cotangent = (
    jnp.asarray(generator.standard_normal(shape), dtype) for _ in range(3)
  )
  scale = jnp.asarray(generator.standard_normal(shape[2:]), jnp.float32)
  problem = residual_problem(shape, branch.dtype)
  actual = (
    residual_tpu.add_scaled(branch, shortcut, scale, blocks=choose(problem, "forward")),
    *residual_tpu.sums_over_space(cotangent, branch, blocks=choose(problem, "backward")),
  )
  assert [one.dtype for one in actual] == [dtype, jnp.float32, jnp.float32]
  branch, shortcut, cotangent = (
    np.asarray(one).astype(np.float64) for one in (branch, shortcut, cotangent)
  )
  expected = (
    shortcut + np.float64(scale) * branch,
    np.sum(cotangent * branch, axis=(0, 1)),
    np.sum(cotangent, axis=(0, 1)),
  )
  errors = exact.relative_errors(actual, expected)
  assert errors[0] < ROUNDINGS * EPSILON[dtype]
  # Sums over pixels in float32, of what float32 holds.
  assert max(errors[1:]) < ROUNDINGS * EPSILON["float32"] * np.sqrt(shape[0] * shape[1])


@pytest.mark.parametrize(
  ("shape", "dtype", "drops"),
  [
    slowly((2, 2, 32, 128, 256), "float32", True),
    ((3, 1, 3, 64, 128), "float32", False),
    slowly((2, 2, 1, 128, 128), "bfloat16", False),
    slowly((1, 5, 32, 128, 384), "bfloat16", True),
    ((1, 2, 32, 128, 256), "bfloat16", True),
  ],
)
def test_values_and_gradients_against_float64(shape, dtype, drops):
  operands, keep, cotangent = problem(*shape, dtype)
  check(operands, keep if drops else None, cotangent)


def test_timms_numerics():
  (x, weight, *others), keep, cotangent = problem(1, 2, 16, 128, 128)
  # Filters of about the variance that timm adds, so that it counts for half.
  operands = x, 0.003 * weight, *others
  expected = exact.in_float64(
    lambda *operands: exact.conv_se_residual(
      *operands, SCALE, keep, alpha=0.2, activation=exact.gelu_erf, epsilon=1e-5
    ),
    operands,
    cotangent,
  )
  theirs = dict(activation=exact.gelu_erf, alpha=0.2, standardization="timm")
  for op in (pallas.conv_se_residual, reference.conv_se_residual):
    actual = run(functools.partial(op, **theirs), operands, keep, cotangent)
    longest = cotangent[..., 0].size
    assert max(exact.relative_errors(actual, expected)) < 12 * EPSILON["float32"] * np.sqrt(longest)


def tile(images, rows, columns, channels, split="positions"):
  return conv_tile.Tile(
    images=images,
    rows=rows,
    columns=columns,
    channels=channels,
    split_channels=split == "channels",
  )


def with_tiles(forward, backward):
  """Returns the op by kernels with these tiles of the convolution."""

  def end_with_tiles(
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
    activation,
    alpha,
    standardization,
  ):
    static = dict(stride=1, groups=1, pool=False, ends_branch=True)
    convolution = problem_of(x.shape, weight.shape, itemsize=x.dtype.itemsize, **static)
    residual = residual_problem(shortcut.shape, x.dtype)
    passes = conv_tile.Passes(
      conv_tile.Blocks(convolution, "forward", forward),
      conv_tile.Blocks(convolution, "backward", backward),
    )
    sums = SumBlocks(choose(residual, "forward"), choose(residual, "backward"))
    x = x.reshape(convolution.input_shape)
    filters = raw_filters(weight, gain, scale)
    operands = x, filters, bias, gate, skip_gain, keep
    branch, *others = end_branch(passes, activation, standardization, alpha, *operands)
    return add_up(sums, PendingSum(branch, shortcut, *others))

  return functools.partial(end_with_tiles, **STATIC)


@pytest.mark.parametrize(
  ("forward", "backward"),
  [
    # The mean of an image is added up over blocks of its rows; each core has its images.
    slowly(tile(16, 1, 2, 128), tile(16, 1, 1, 128)),
    # Cores share the channels; all of an image, and of all images, at once.
    slowly(tile(32, 2, 2, 128, "channels"), tile(16, 2, 1, 128, "channels")),
    (tile(16, 2, 1, 256), tile(32, 1, 2, 256)),
  ],
)
def test_any_tile_gives_the_same(forward, backward):
  check(*problem(2, 2, 32, 256, 256), kernel=with_tiles(forward, backward))


@pytest.mark.parametrize(
  ("package", "of_convolution"),
  [(pallas, conv_pallas), (reference, conv_reference)],
  ids=["kernels", "reference"],
)
@pytest.mark.parametrize("dtype", [slowly("float32"), "bfloat16"])
def test_standardized_filters_give_the_same(package, of_convolution, dtype):
  def in_two_steps(
    x, weight, gain, bias, shortcut, gate, skip_gain, scale, keep, *, standardization, **static
  ):
    filters = of_convolution.standardize_filters(
      weight,
      gain,
      scale,
      dtype=x.dtype,
      gradient_dtype=jnp.dtype("float32"),
      standardization=standardization,
    )
    return package.standardized_conv_se_residual(
      x, filters, bias, shortcut, gate, skip_gain, keep, **static
    )

  check(*problem(2, 1, 16, 128, 256, dtype), kernel=functools.partial(in_two_steps, **STATIC))


@pytest.mark.usefixtures("on_two_cores")
def test_cores_that_share_the_work_do_not_race():
  forward, backward = tile(16, 1, 2, 128), tile(16, 2, 1, 128, "channels")
  check(*problem(2, 2, 32, 256, 256), kernel=with_tiles(forward, backward))


def test_a_dropped_image_is_its_shortcut_exactly():
  operands, keep, _ = problem(2, 1, 16, 128, 128, "bfloat16")
  result, shortcut = exact.run_once(of_operands(kernel, keep), operands), operands[4]
  np.testing.assert_array_equal(result[:, :, 1::2], shortcut[:, :, 1::2])
  assert not np.array_equal(result[:, :, ::2], shortcut[:, :, ::2])


def test_gradients_under_shard_map_are_those_of_one_device():
  operands, keep, cotangent = problem(1, 1, 128, 128, 128)
  mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
  x, weight, gain, bias, shortcut, *gate_and_skip_gain = operands
  wide, parameters = (x, shortcut, cotangent), (weight, gain, bias, *gate_and_skip_gain)

  def gradients(wide, keep, parameters):
    (x, shortcut, cotangent), (weight, gain, bias, *others) = wide, parameters
    y, x, weight, gain, bias, shortcut, *others = run(
      kernel,
      (x, weight, gain, bias, shortcut, *others),
      keep,
      cotangent,
      exact.value_and_gradients,
    )
    return (y, x, shortcut), (weight, gain, bias, *others)

  def of_all_devices(wide, keep, parameters):
    wide, parameters = gradients(wide, keep, parameters)
    return wide, jax.tree.map(lambda one: jax.lax.psum(one, "data"), parameters)

  images = P(None, None, "data")
  sharded = jax.jit(
    jax.shard_map(
      of_all_devices,
      mesh=mesh,
      in_specs=(images, P("data"), P()),
      out_specs=(images, P()),
      # The TPU interpreter hangs on a machine of few cores; the plain one does not support arrays
      # that vary over a mesh.
      check_vma=False,
    )
  )
  with pltpu.force_tpu_interpret_mode(True):
    actual = sharded(wide, keep, parameters)
    expected = jax.jit(gradients)(wide, keep, parameters)
  for ours, theirs in zip(*map(jax.tree.leaves, (actual, expected)), strict=True):
    np.testing.assert_allclose(ours, theirs, atol=1e-5 * max(np.abs(theirs).max(), 1))


@pytest.mark.parametrize(
  ("shape", "change", "reason"),
  [
    ((2, 2, 1, 128, 128), dict(weight=jnp.ones((3, 3, 128, 128))), "filters other than 1x1"),
    ((2, 2, 1, 128, 128), dict(shortcut=jnp.ones((2, 2, 1, 128), jnp.bfloat16)), "shortcut of"),
    ((2, 2, 1, 128, 96), {}, "output channels that do not fill"),
    ((2, 2, 1, 128, 128), dict(x=jnp.ones((2, 2, 1, 128), jnp.float16)), "activations other"),
    ((1, 2048, 1, 128, 128), {}, "VMEM"),
  ],
)
def test_says_what_it_does_not_cover(shape, change, reason):
  operands, keep, _ = problem(*shape)
  named = dict(zip(("x", "weight", "gain", "bias", "shortcut"), operands, strict=False)) | change
  with pytest.raises(NotImplementedError, match=reason):
    of_operands(kernel, keep)(*named.values(), *operands[5:])
