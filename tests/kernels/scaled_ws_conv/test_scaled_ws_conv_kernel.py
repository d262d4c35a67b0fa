"""The convolution kernels as the TPU interpreter runs them: on two cores, looking for races.

The exact values are computed in float64. With operands rounded to the dtype, each of the K products
of a sum has an error of eps, independent of the others: the sum's error is eps x sqrt(K) times a
product's size, and the sum's own size is sqrt(K) times a product's. So the relative tolerance for
it is c x eps; c counts the roundings on the way: the activated input, the standardized weight, the
result, and one in the middle of a gradient. Each of the K additions, in float32, may add 2^-24 of
the sum: c x 2^-24 x sqrt(K) more.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec as P

from kernels.scaled_ws_conv import pallas, reference, vjp
from kernels.scaled_ws_conv.filters import StandardizedFilters, to_rows
from kernels.scaled_ws_conv.pallas import scaled_ws_convolution as kernel
from kernels.scaled_ws_conv.problem import problem_of
from kernels.scaled_ws_conv.tile import Blocks, Passes, Tile, choose_both
from tests.kernels import exact
from tests.kernels.slow_cases import slowly

pytestmark = pytest.mark.usefixtures("interpreted")
ROUNDINGS = 4
EPSILON = {"float32": 2.0**-24, "bfloat16": 2.0**-9}
ERROR_OF_REFERENCE = {"float32": 4.0, "bfloat16": 1.25}
"""Factor by which a kernel's error may be larger: XLA rounds as often, but its float32 sums are
sums of sums, which lose less than the kernel's sums in a row."""
SCALE = jnp.float32(0.7)


def draw(seed, *shape, dtype="float32", mean=0.0):
  values = np.random.default_rng(seed).standard_normal(shape) + mean
  return jnp.asarray(values, dtype)


def problem(*sizes, **options):
  """Returns what draws a problem: while tests are collected, there is no time to."""
  return functools.partial(drawn, *sizes, **options)


def drawn(
  height,
  width,
  images,
  inputs,
  outputs,
  kernel=1,
  *,
  dtype="float32",
  stride=1,
  groups=1,
  pool=False,
):
  """Returns operands, the cotangent of the result, and the static arguments."""
  phases = 2 if pool else stride
  operands = (
    draw(0, height, width, images, inputs, dtype=dtype),
    draw(1, kernel, kernel, inputs // groups, outputs, mean=0.3),
    draw(2, outputs),
    draw(3, outputs),
  )
  cotangent = draw(4, height // phases, width // phases, images, outputs, dtype=dtype)
  return operands, cotangent, dict(stride=stride, groups=groups, pool=pool)


def run(function, operands, cotangent, static, compute=exact.compiled_once, **more):
  """Returns value and gradients of an implementation of the op."""

  def of_operands(*operands):
    return function(
      *operands,
      SCALE,
      **static,
      **{
        "activation": exact.gelu,
        "returns_input": False,
        "standardization": "released",
        **more,
      },
    )

  return compute(of_operands, operands, cotangent)


def run_reference(*problem, **more):
  """Returns value and gradients of the reference."""
  return run(reference.scaled_ws_convolution, *problem, compute=exact.compiled_once, **more)


def tolerance(operands, cotangent):
  """Returns the relative tolerance for the longest sums: over a filter, or over all pixels."""
  x, weight, *_ = operands
  longest = max(weight[..., 0].size, cotangent[..., 0].size)
  return ROUNDINGS * (EPSILON[str(x.dtype)] + EPSILON["float32"] * np.sqrt(longest))


def check(operands, cotangent, static, kernel=kernel):
  dtype = str(operands[0].dtype)
  expected = exact.in_float64(
    lambda *operands: exact.convolve(*operands, 0.7, **static, activation=exact.gelu),
    operands,
    cotangent,
  )
  plain = (cotangent, None)
  actual = run(kernel, operands, plain, static)
  assert actual[0].dtype == cotangent.dtype
  errors = exact.relative_errors(actual, expected)
  assert max(errors) < tolerance(operands, cotangent)
  theirs = exact.relative_errors(run_reference(operands, plain, static), expected)
  for ours, reference_error in zip(errors, theirs, strict=True):
    assert ours < ERROR_OF_REFERENCE[dtype] * reference_error + EPSILON["float32"]


# The interpreter takes as long for a single pixel of few images as for one of many.
SMALL = problem(2, 1, 16, 256, 128)
PLAIN = problem(4, 2, 16, 256, 128)
GROUPED = problem(4, 2, 32, 256, 256, 3, groups=2)
STRIDED = problem(8, 4, 32, 256, 256, 3, groups=2, stride=2)
POOLED = problem(4, 4, 32, 128, 256, pool=True)
HALF_FULL = problem(4, 4, 32, 64, 64, 3)


def with_tiles(forward, backward):
  """Returns the op by kernels with these tiles, for whole tiles of images."""

  def convolve(
    x, weight, gain, bias, scale, *, activation, returns_input, standardization, **static
  ):
    assert not returns_input
    problem = problem_of(
      x.shape, weight.shape, itemsize=x.dtype.itemsize, standardized=forward.packed, **static
    )
    if forward.packed:
      filters = standardized(pallas, x, weight, gain, scale, standardization)
    else:
      filters = pallas.raw_filters(weight, gain, scale)
    result, _ = vjp.convolve(
      Passes(Blocks(problem, "forward", forward), Blocks(problem, "backward", backward)),
      activation,
      standardization,
      x.reshape(problem.input_shape),
      filters,
      bias,
    )
    return result[:, :, 0], None

  return convolve


def standardized(package, x, weight, gain, scale, standardization):
  """Returns the filters that a package standardizes in a step of its own."""
  return package.standardize_filters(
    weight,
    gain,
    scale,
    dtype=x.dtype,
    gradient_dtype=jnp.dtype("float32"),
    standardization=standardization,
  )


def in_two_steps(package):
  """Returns the op as one step that standardizes the filters and one that convolves."""

  def convolve(x, weight, gain, bias, scale, *, standardization, **static):
    filters = standardized(package, x, weight, gain, scale, standardization)
    return package.standardized_convolution(x, filters, bias, **static)

  return convolve


def tile(images, rows, columns, channels, split="positions", cores=2):
  return Tile(
    images=images,
    rows=rows,
    columns=columns,
    channels=channels,
    split_channels=split == "channels",
    cores=cores,
  )


@pytest.mark.parametrize(
  ("case", "forward", "backward"),
  [
    # Cores share rows; several channel blocks each.
    slowly(PLAIN, tile(16, 2, 2, 128), tile(16, 1, 1, 128)),
    # Cores share the input channels of the backward pass.
    slowly(PLAIN, tile(16, 4, 2, 128, cores=1), tile(16, 2, 2, 128, "channels")),
    # Whole pictures, a group for each core.
    slowly(GROUPED, tile(16, 4, 2, 128, "channels"), tile(16, 4, 2, 128, "channels")),
    # Rows of the neighboring blocks are needed on both sides.
    (GROUPED, tile(32, 2, 1, 128, "channels"), tile(16, 2, 1, 128)),
    slowly(GROUPED, tile(16, 1, 2, 128), tile(16, 2, 2, 128, "channels")),
    slowly(STRIDED, tile(16, 4, 2, 128, "channels"), tile(16, 4, 1, 128, "channels")),
    (STRIDED, tile(32, 2, 2, 128), tile(32, 1, 2, 128)),
    (POOLED, tile(16, 2, 1, 256), tile(16, 1, 2, 128)),
    slowly(POOLED, tile(32, 1, 2, 128, "channels"), tile(32, 1, 1, 128)),
  ],
)
def test_any_tile_gives_the_same(case, forward, backward):
  check(*case(), kernel=with_tiles(forward, backward))


def packed(images, rows, columns, channels, cores=2):
  return Tile(
    images=images,
    rows=rows,
    columns=columns,
    channels=channels,
    split_channels=False,
    cores=cores,
    packed=True,
  )


@pytest.mark.parametrize(
  ("case", "forward", "backward"),
  [
    # One core goes through two blocks of images, each with several blocks of rows.
    slowly(HALF_FULL, packed(16, 2, 1, 64, cores=1), packed(16, 1, 2, 64, cores=1)),
    # A pixel has a whole tile and half of one.
    (
      problem(2, 2, 32, 192, 192, 3),
      packed(16, 1, 1, 192, cores=1),
      packed(16, 1, 1, 192, cores=1),
    ),
    # Only the outputs have a tile that is half empty.
    (
      problem(1, 2, 16, 128, 64, 3),
      packed(16, 1, 1, 64, cores=1),
      packed(16, 1, 1, 128, cores=1),
    ),
    slowly(
      problem(4, 2, 32, 192, 192, 3, dtype="bfloat16"),
      packed(32, 1, 1, 192, cores=1),
      packed(16, 2, 1, 192, cores=1),
    ),
    slowly(
      problem(2, 4, 16, 320, 192, 3),
      packed(16, 1, 1, 192, cores=1),
      packed(16, 2, 2, 320, cores=1),
    ),
    # Only the inputs, or only the outputs, have a tile that is half empty.
    *(
      slowly(
        problem(3, 2, 16, inputs, outputs, 3),
        packed(16, 1, 1, outputs, cores=1),
        packed(16, 3, 1, inputs, cores=1),
      )
      for inputs, outputs in ((64, 128), (128, 192))
    ),
  ],
)
def test_pixels_share_half_empty_tiles(case, forward, backward):
  check(*case(), kernel=with_tiles(forward, backward))


@pytest.mark.slow
def test_the_input_of_a_packed_kernel_need_not_be_differentiated():
  (x, weight, gain, bias), cotangent, static = problem(1, 2, 16, 64, 64, 3)()
  filters = standardized(pallas, x, weight, gain, SCALE, "released")

  def of_filters(x, filters):
    more = dict(activation=exact.gelu, returns_input=False)
    return pallas.standardized_convolution(x, filters, bias, **static, **more)[0]

  def gradients(with_input):
    operands = (x, filters) if with_input else (filters,)
    function = of_filters if with_input else lambda filters: of_filters(x, filters)
    return jax.jit(lambda: jax.vjp(function, *operands)[1](cotangent))()[-1].gradient_sink

  np.testing.assert_array_equal(gradients(with_input=False), gradients(with_input=True))


@pytest.mark.usefixtures("on_two_cores")
@pytest.mark.parametrize(
  ("case", "forward", "backward"),
  [
    # Blocks of images, each with several steps.
    slowly(HALF_FULL, packed(16, 2, 2, 64), packed(16, 4, 2, 64)),
    # Rows forward, input channels backward.
    (PLAIN, tile(16, 2, 2, 128), tile(16, 2, 2, 128, "channels")),
    # Groups forward, rows backward.
    slowly(GROUPED, tile(16, 4, 2, 128, "channels"), tile(16, 2, 2, 128)),
  ],
)
def test_cores_that_share_the_work_do_not_race(case, forward, backward):
  check(*case(), kernel=with_tiles(forward, backward))


@pytest.mark.parametrize(
  "case",
  [
    slowly(problem(2, 2, 16, 256, 256, 3, groups=2, dtype="bfloat16")),
    slowly(problem(4, 4, 16, 256, 256, 3, groups=2, stride=2, dtype="bfloat16")),
    problem(1, 2, 16, 256, 384, dtype="bfloat16"),
    slowly(problem(4, 4, 16, 128, 256, pool=True, dtype="bfloat16")),
  ],
)
def test_bfloat16(case):
  check(*case())


@pytest.mark.parametrize(
  "case",
  [
    # Odd sides, one image.
    problem(3, 3, 1, 128, 128, 3),
    # More images than fill one tile and fewer than fill two, whose results are not multiples of
    # the lanes.
    slowly(problem(1, 3, 17, 64, 72)),
    # The network F0+ has a group of 192.
    slowly(problem(2, 1, 2, 192, 192, 3)),
    slowly(problem(2, 1, 3, 384, 192, dtype="bfloat16")),
    slowly(problem(5, 1, 2, 16, 128, 3, dtype="bfloat16")),
  ],
)
def test_irregular_shapes(case):
  check(*case())


IN_TWO_STEPS = {
  "1x1": PLAIN,
  "3x3": problem(2, 2, 16, 256, 256, 3, groups=2, dtype="bfloat16"),
  "pooled": problem(4, 4, 16, 128, 256, pool=True, dtype="bfloat16"),
  "384 to 192": problem(2, 1, 3, 384, 192, dtype="bfloat16"),
  # Three rows of one block of images cannot be shared by two cores, so the kernels are packed.
  "3x3 192": problem(3, 2, 2, 192, 192, 3),
  "64 to 72": problem(1, 3, 17, 64, 72),
}


def test_one_of_them_is_packed():
  packed = []
  for name, case in IN_TWO_STEPS.items():
    (x, weight, *_), _, static = case()
    standardized = problem_of(x.shape, weight.shape, itemsize=2, standardized=True, **static)
    if all(blocks.tile.packed for blocks in choose_both(standardized)):
      packed.append(name)
  assert packed == ["3x3 192"]


@pytest.mark.parametrize(
  "case",
  [slowly(name) if name in ("1x1", "384 to 192", "3x3 192") else name for name in IN_TWO_STEPS],
)
def test_two_steps_give_the_same_as_one(case):
  check(*IN_TWO_STEPS[case](), kernel=in_two_steps(pallas))


@pytest.mark.parametrize("case", ["3x3", "64 to 72"])
def test_two_steps_of_the_reference_give_the_same_as_one(case):
  check(*IN_TWO_STEPS[case](), kernel=in_two_steps(reference))


@pytest.mark.parametrize("split", ["channels", "positions"])
def test_the_gradient_of_the_filters_has_the_dtype_of_the_sink(split):
  """One core writes a part of the sum over all pixels in the sink's dtype, two add theirs first."""
  (x, weight, _, bias), cotangent, static = problem(2, 1, 16, 256, 128, dtype="bfloat16")()
  standardized = problem_of(x.shape, weight.shape, itemsize=2, standardized=True, **static)
  passes = Passes(
    Blocks(standardized, "forward", tile(16, 2, 1, 128, cores=1)),
    Blocks(standardized, "backward", tile(16, 1, 1, 128, split)),
  )

  def gradient(dtype):
    sink = jnp.zeros((1, 2, 128, 128), dtype)
    filters = StandardizedFilters(to_rows(weight[0]).astype(x.dtype), sink)

    def result(filters):
      return vjp.convolve(
        passes, exact.gelu, "released", x.reshape(standardized.input_shape), filters, bias
      )[0]

    (of_filters,) = jax.vjp(result, filters)[1](cotangent[:, :, None])
    assert of_filters.gradient_sink.dtype == dtype
    return of_filters.gradient_sink

  exactly = gradient("float32")
  difference = jnp.abs(gradient("bfloat16").astype(jnp.float32) - exactly)
  # Half of the last of eight bits.
  assert (difference <= 2.0**-8 * jnp.abs(exactly)).all()
  assert difference.any()


@pytest.mark.parametrize("dtype", ["float32", slowly("bfloat16")])
def test_the_input_with_the_gradient_of_its_other_uses(dtype):
  operands, cotangent, static = problem(2, 2, 32, 128, 256, dtype=dtype)()
  cotangents = cotangent, draw(6, *operands[0].shape, dtype=dtype)

  def exactly(x, *parameters):
    return exact.convolve(x, *parameters, 0.7, activation=exact.gelu), x

  expected = exact.in_float64(exactly, operands, cotangents)
  actual = run(kernel, operands, cotangents, static, returns_input=True)
  assert max(exact.relative_errors(actual, expected)) < tolerance(operands, cotangent)


@pytest.mark.parametrize(
  "case",
  [
    SMALL,
    slowly(problem(2, 2, 16, 256, 256, 3, groups=2, dtype="bfloat16")),
    slowly(problem(4, 4, 16, 128, 256, pool=True)),
  ],
)
def test_timms_numerics(case):
  (x, weight, gain, bias), cotangent, static = case()
  # Filters of about the variance that timm adds, so that it counts for half.
  operands = x, 0.003 * weight, gain, bias
  theirs = dict(activation=exact.gelu_erf, standardization="timm")
  expected = exact.in_float64(
    lambda *operands: exact.convolve(
      *operands, 0.7, **static, activation=exact.gelu_erf, epsilon=1e-5
    ),
    operands,
    cotangent,
  )
  for actual in (
    run(kernel, operands, (cotangent, None), static, **theirs),
    run_reference(operands, (cotangent, None), static, **theirs),
  ):
    assert max(exact.relative_errors(actual, expected)) < tolerance(operands, cotangent)


def test_without_activation():
  operands, cotangent, static = SMALL()
  expected = exact.in_float64(
    lambda *operands: exact.convolve(*operands, 0.7, **static), operands, cotangent
  )
  actual = run(kernel, operands, (cotangent, None), static, activation=None)
  assert max(exact.relative_errors(actual, expected)) < tolerance(operands, cotangent)


def test_a_constant_added_to_a_filter_changes_nothing():
  (x, weight, gain, bias), _, static = SMALL()
  static = dict(**static, activation=None, returns_input=False, standardization="released")
  plain, _ = kernel(x, weight, gain, bias, SCALE, **static)
  shifted, _ = kernel(x, weight + 2.0, gain, bias, SCALE, **static)
  # The sum of 256 weights moves by 512, of which 2^-24 is lost.
  np.testing.assert_allclose(shifted, plain, atol=2e-5)


@pytest.mark.parametrize(("mean", "deviation"), [(0.25, 0.0), (0.0, 1e-5)])
def test_constant_filters_are_finite(mean, deviation):
  """Covers filters with so little variance that its floor counts, too."""
  operands, cotangent, static = SMALL()
  x, weight, gain, bias = operands
  operands = x, mean + deviation * weight, gain, bias
  # Operation by operation: fused, the compiler's sums of equal numbers round in another order.
  eagerly = exact.value_and_gradients
  actual = run(kernel, operands, (cotangent, None), static, eagerly)
  expected = run(reference.scaled_ws_convolution, operands, (cotangent, None), static, eagerly)
  for ours, theirs in zip(actual, expected, strict=True):
    np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())


def test_gradients_under_shard_map_are_those_of_one_device():
  """Shards images over eight devices; the parameters' gradients are summed outside the kernels.

  The TPU interpreter waits in each of the devices' threads for the others and hangs on a machine of
  few cores; the plain one does not, but does not support arrays that vary over a mesh.
  """
  operands, cotangent, static = problem(1, 1, 128, 128, 128)()
  mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

  def gradients(x, weight, gain, bias, cotangent):
    operands = x, weight, gain, bias
    y, x_gradient, *others = run(
      kernel, operands, (cotangent, None), static, exact.value_and_gradients
    )
    return y, x_gradient, *(jax.lax.psum(one, "data") for one in others)

  images = P(None, None, "data")
  sharded = jax.jit(
    jax.shard_map(
      gradients,
      mesh=mesh,
      in_specs=(images, P(), P(), P(), images),
      out_specs=(images, images, P(), P(), P()),
      check_vma=False,
    )
  )
  with pltpu.force_tpu_interpret_mode(True):
    actual = sharded(*operands, cotangent)
    expected = run(kernel, operands, (cotangent, None), static)
  for ours, theirs in zip(actual, expected, strict=True):
    # Sums of 128 results in another order.
    np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())


@pytest.mark.parametrize(
  ("case", "activation", "reason"),
  [
    (problem(2, 2, 1, 128, 128, 5), None, "filters other than"),
    (problem(3, 2, 1, 128, 128, 3, stride=2), None, "odd side"),
    (problem(2, 5, 1, 128, 128, pool=True), None, "odd side"),
    (problem(2, 2, 1, 128, 128, stride=2), None, "strides above"),
    (problem(3, 3, 1, 128, 128, 3, stride=3), None, "strides above"),
    (problem(2, 2, 1, 128, 128, 3, groups=2), None, "groups that do not fill"),
    (problem(2, 2, 1, 3, 128), None, "sublanes"),
    (problem(2, 2, 1, 128, 128, dtype="float16"), None, "activations other"),
    (problem(2, 2, 1, 128, 128), jax.nn.log_softmax, "not elementwise"),
    (problem(2, 2, 1, 16384, 128), None, "VMEM"),
  ],
)
def test_says_what_it_does_not_cover(case, activation, reason):
  operands, _, static = case()
  with pytest.raises(NotImplementedError, match=reason):
    kernel(
      *operands,
      SCALE,
      **static,
      activation=activation,
      returns_input=False,
      standardization="released",
    )


def test_parameters_of_another_dtype_are_not_covered():
  (x, weight, gain, bias), _, static = SMALL()
  with pytest.raises(NotImplementedError, match="parameters other than float32"):
    kernel(
      x,
      weight.astype(jnp.bfloat16),
      gain,
      bias,
      SCALE,
      **static,
      activation=None,
      returns_input=False,
      standardization="released",
    )
