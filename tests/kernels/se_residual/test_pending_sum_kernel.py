"""Blocks that leave the residual addition to a later convolution, by kernels against float64.

The ops are tested together, since the derivatives of a `PendingSum` are an agreement between the
one that makes it and the one that adds it up. `test_scaled_ws_conv_kernel` explains where the
tolerances come from.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kernels
from kernels.scaled_ws_conv import pallas as conv_pallas
from kernels.scaled_ws_conv import reference as conv_reference
from kernels.scaled_ws_conv import tile as conv_tile
from kernels.scaled_ws_conv.formulas import PendingSum
from kernels.scaled_ws_conv.problem import problem_of
from kernels.scaled_ws_conv.vjp import convolve
from kernels.se_residual import pallas, reference
from kernels.se_residual.op import standardized_convolution_of_sum
from tests.kernels import exact
from tests.kernels.se_residual import test_se_residual_kernel
from tests.kernels.slow_cases import slowly

pytestmark = pytest.mark.usefixtures("interpreted")
ACTIVATION = exact.gelu
EPSILON = test_se_residual_kernel.EPSILON
SCALE = test_se_residual_kernel.SCALE


def problem(height, width, images, inputs, channels, outputs, dtype="float32"):
  """Returns the operands of a branch's end and of the next convolution, the mask, cotangents."""
  branch, keep, cotangent = test_se_residual_kernel.problem(
    height, width, images, inputs, channels, dtype
  )
  generator = np.random.default_rng(1)

  def draw(*shape, dtype="float32"):
    return jnp.asarray(generator.standard_normal(shape), dtype)

  following = draw(1, 1, channels, outputs), draw(outputs), draw(outputs)
  cotangents = draw(height, width, images, outputs, dtype=dtype), cotangent
  return (*branch, *following), keep, cotangents


def exactly(keep, returns_input=True):
  """Returns the specification, which takes float64."""

  def both(*operands):
    *branch, weight, gain, bias = operands
    x = exact.conv_se_residual(*branch, SCALE, keep, activation=ACTIVATION, alpha=0.2)
    return exact.convolve(x, weight, gain, bias, SCALE, activation=ACTIVATION), x

  return both if returns_input else lambda *operands: both(*operands)[0]


def by(conv_se, of_sum, keep, *, returns_input=True):
  """Returns the two ops, one after another."""
  standardize = functools.partial(
    conv_reference.standardize_filters,
    gradient_dtype=jnp.dtype("float32"),
    standardization="released",
  )

  def both(x, weight, gain, bias, shortcut, gate, skip_gain, weight2, gain2, bias2):
    filters, following = (
      standardize(*raw, jnp.float32(SCALE), dtype=x.dtype)
      for raw in ((weight, gain), (weight2, gain2))
    )
    made = conv_se(x, filters, bias, gate, skip_gain, keep, activation=ACTIVATION, alpha=0.2)
    branch, scale, sums_sink = made
    result, total = of_sum(PendingSum(branch, shortcut, scale, sums_sink), following, bias2)
    return (result, total) if returns_input else result

  return both


def of_sum(package, returns_input=True):
  """Returns an implementation of `standardized_convolution_of_sum`."""
  return functools.partial(
    package.standardized_convolution_of_sum, activation=ACTIVATION, returns_input=returns_input
  )


def first_added_up(package):
  """Returns a convolution behind `add_up`, which is what runs where no kernel does both."""

  def in_two_steps(pending, filters, bias):
    common = dict(stride=1, groups=1, pool=False, activation=ACTIVATION, returns_input=True)
    return conv_pallas.standardized_convolution(package.add_up(pending), filters, bias, **common)

  return in_two_steps


def check(operands, cotangents, function, expected_function):
  """Compares values and all gradients."""
  dtype = str(operands[0].dtype)
  expected = exact.in_float64(expected_function, operands, cotangents)
  actual = exact.compiled_once(function, operands, cotangents)
  assert [one.dtype for one in actual] == [
    one.dtype for one in jax.tree.leaves((cotangents, operands))
  ]
  longest = operands[4][..., 0].size
  # As for the end of a branch, with the products of the next convolution before and behind it.
  bound = 24 * (EPSILON[dtype] + EPSILON["float32"] * np.sqrt(longest))
  errors = exact.relative_errors(actual, expected)
  # In bfloat16, the terms of a single number, the skip gain's gradient, may cancel.
  are_sums = [dtype == "bfloat16" and one.ndim == 0 for one in actual]
  counted = [error for error, is_sum in zip(errors, are_sums, strict=True) if not is_sum]
  assert max(counted) < bound, (counted, bound)


@pytest.mark.parametrize(
  ("shape", "dtype", "drops"),
  [
    # Three images, which are padded, and an output that does not fill the lanes.
    ((3, 1, 3, 64, 128, 64), "float32", False),
    ((2, 3, 16, 128, 256, 256), "bfloat16", True),
  ],
)
def test_values_and_gradients_against_float64(shape, dtype, drops):
  operands, keep, cotangents = problem(*shape, dtype)
  keep = keep if drops else None
  check(operands, cotangents, by(pallas.standardized_conv_se, of_sum(pallas), keep), exactly(keep))


def test_the_sum_need_not_be_returned():
  operands, keep, (cotangent, _) = problem(2, 1, 16, 128, 128, 128)
  options = dict(returns_input=False)
  ops = by(pallas.standardized_conv_se, of_sum(pallas, **options), keep, **options)
  check(operands, cotangent, ops, exactly(keep, **options))


@pytest.mark.parametrize(
  ("maker", "adder"),
  [
    (pallas, first_added_up(pallas)),
    (reference, of_sum(pallas)),
    (pallas, of_sum(reference)),
    (reference, of_sum(reference)),
  ],
  ids=["add_up", "reference makes", "reference adds", "reference"],
)
def test_all_that_make_a_sum_agree_with_all_that_add_it_up(maker, adder):
  operands, keep, cotangents = problem(2, 1, 16, 128, 128, 128)
  check(operands, cotangents, by(maker.standardized_conv_se, adder, keep), exactly(keep))


def test_filters_that_do_not_fit_leave_the_addition_to_its_own_kernel():
  shape = (1, 1, 16, 4096)
  pending = PendingSum(*(jnp.zeros(shape, jnp.bfloat16),) * 2, *(jnp.zeros(shape[2:]),) * 2)
  filters = jax.eval_shape(
    functools.partial(
      conv_reference.standardize_filters,
      dtype=jnp.dtype("bfloat16"),
      gradient_dtype=jnp.dtype("float32"),
      standardization="released",
    ),
    jnp.zeros((1, 1, 4096, 2048)),
    jnp.zeros(2048),
    None,
  )
  with_kernels = functools.partial(
    standardized_convolution_of_sum, activation=ACTIVATION, implementation="pallas"
  )
  kernels.fallback_counts.clear()
  jaxpr = str(jax.make_jaxpr(with_kernels)(pending, filters, jnp.zeros(2048)))
  assert "name=add_scaled" in jaxpr
  assert "name=scaled_ws_conv" in jaxpr
  small = jax.tree.map(lambda one: one[..., :128], pending)
  jaxpr = jax.make_jaxpr(with_kernels)(
    small, jax.tree.map(lambda one: one.update(shape=(1, 1, 2048, 128)), filters), jnp.zeros(2048)
  )
  assert "name=add_scaled" not in str(jaxpr)
  assert not kernels.fallback_counts


def test_a_sum_that_no_kernel_adds_up_leaves_the_convolution_to_its_kernel():
  shape = (2, 2, 16, 192)
  pending = PendingSum(*(jnp.zeros(shape, jnp.bfloat16),) * 2, *(jnp.zeros(shape[2:]),) * 2)
  filters = kernels.standardize_filters(jnp.ones((1, 1, 192, 96)), jnp.ones(96))
  jaxpr = jax.make_jaxpr(
    functools.partial(
      standardized_convolution_of_sum, activation=ACTIVATION, implementation="pallas"
    )
  )(pending, filters, jnp.zeros(96))
  assert "name=scaled_ws_conv" in str(jaxpr)
  assert "name=add_scaled" not in str(jaxpr)


def with_tiles(forward, backward):
  """Returns the convolution of a sum with these tiles."""

  def convolve_sum(pending, filters, bias):
    both = problem_of(
      pending.branch.shape,
      (1, 1, pending.branch.shape[-1], bias.shape[0]),
      stride=1,
      groups=1,
      pool=False,
      returns_input=True,
      itemsize=pending.branch.dtype.itemsize,
      standardized=True,
      sums_input=True,
    )
    passes = conv_tile.Passes(
      conv_tile.Blocks(both, "forward", forward), conv_tile.Blocks(both, "backward", backward)
    )
    result, total = convolve(passes, ACTIVATION, "released", pending, filters, bias)
    return result[:, :, 0], total.reshape(pending.branch.shape)

  return convolve_sum


tile = test_se_residual_kernel.tile


@pytest.mark.parametrize(
  ("sides", "forward", "backward"),
  [
    # Each core has images of its own, whose sums are added up over blocks of their rows.
    slowly((2, 2), tile(16, 1, 2, 128), tile(16, 1, 1, 128)),
    # Cores share all images, so that each has a part of the sums.
    slowly((2, 2), tile(32, 1, 2, 128), tile(32, 1, 1, 256)),
    # They do so as well, and each adds up several blocks of rows.
    ((4, 1), tile(32, 1, 1, 128), tile(32, 1, 1, 256)),
    # Cores share the channels.
    slowly((2, 2), tile(32, 1, 1, 128), tile(16, 2, 2, 128, "channels")),
  ],
)
@pytest.mark.usefixtures("on_two_cores")
def test_any_tile_gives_the_same(sides, forward, backward):
  operands, keep, cotangents = problem(*sides, 32, 128, 256, 128)
  ops = by(pallas.standardized_conv_se, with_tiles(forward, backward), keep)
  check(operands, cotangents, ops, exactly(keep))


def test_tiles_that_would_add_up_twice_or_lose_a_part_are_refused():
  both = problem_of(
    (2, 2, 64, 256),
    (1, 1, 256, 256),
    stride=1,
    groups=1,
    pool=False,
    itemsize=2,
    standardized=True,
    sums_input=True,
  )
  with pytest.raises(ValueError, match="would add up the input again"):
    conv_tile.Blocks(both, "forward", tile(16, 1, 2, 128))
  with pytest.raises(ValueError, match="cores share some of the images"):
    conv_tile.Blocks(dataclasses.replace(both, images=96), "backward", tile(32, 1, 2, 256))
