"""The kernel of small parameters against the reference, as the TPU interpreter runs it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec as P

import kernels
from kernels.sgd_agc import op, reference, small_tpu

kernel_step = functools.partial(
  small_tpu.sgd_agc,
  averages=None,
  stacked=False,
  parameter_norm_floor=reference.PARAMETER_NORM_FLOOR,
  gradient_norm_floor=reference.GRADIENT_NORM_FLOOR,
)
CLIPPING = jnp.float32(0.01)
HYPER_PARAMETERS = dict(
  learning_rate=jnp.float32(0.1),
  momentum=jnp.float32(0.9),
  weight_decay=jnp.float32(2e-5),
  clipping=CLIPPING,
  average_decay=None,
)
# Of the networks: vectors that fill tiles of 1024 and not, a skip gain, the stem's filters, and
# matrices of whole tiles and the other way round.
SHAPES = {
  "gain": (2048,),
  "bias": (1536,),
  "classifier bias": (1000,),
  "stem bias": (16,),
  "skip gain": (),
  "stem 0": (3, 3, 3, 16),
  "stem 2": (3, 3, 32, 64),
  "excite": (16, 128),
  "squeeze": (1, 1, 384, 192),
  "narrow": (256, 24),
}
STACKS = {"gain": (3, 2048), "bias": (17, 384), "skip gain": (5,)}


@pytest.fixture(autouse=True)
def interpreted():
  with pltpu.force_tpu_interpret_mode(
    pltpu.InterpretParams(detect_races=True, num_cores_or_threads=2)
  ):
    yield
  pltpu.reset_tpu_interpret_mode_state()


def draw(shapes, gradient_scale=1.0):
  generator = np.random.default_rng(0)
  return [
    {
      name: jnp.asarray(scale * generator.standard_normal(shape), jnp.float32)
      for name, shape in shapes.items()
    }
    for scale in (1.0, gradient_scale, 1.0, 1.0)
  ]


def expected_step(arrays, stacked=False, **hyper_parameters):
  step = op._of_each(reference.sgd_agc, stacked)
  return step(*arrays, *{**HYPER_PARAMETERS, **hyper_parameters}.values())


def agree(actual, expected, shapes):
  for kind, ours, theirs in zip(
    ("parameter", "buffer", "average"), actual[:3], expected[:3], strict=True
  ):
    if theirs is None:
      assert ours is None
      continue
    assert ours.keys() == shapes.keys()
    for name, values in theirs.items():
      # Float32 sums of other orders: relative 2^-24 x sqrt(values of a unit), twice for a quotient.
      tolerance = 2 * 2**-24 * np.sqrt(max(values.size, 4))
      # What they are made of is of size 1, and may cancel.
      largest = max(np.abs(np.asarray(values)).max(), 1.0)
      np.testing.assert_allclose(
        ours[name], values, rtol=0, atol=tolerance * largest, err_msg=f"{kind} {name}"
      )
  elements = sum(int(np.prod(shape)) for shape in shapes.values())
  np.testing.assert_allclose(actual[3], expected[3], rtol=2**-24 * np.sqrt(elements))


@pytest.mark.parametrize("gradient_scale", [1e-4, 1.0])
@pytest.mark.parametrize(("shapes", "stacked"), [(SHAPES, False), (STACKS, True)])
def test_all_in_one_call(shapes, stacked, gradient_scale):
  arrays = draw(shapes, gradient_scale)[:3]
  for shape in shapes.values():
    assert small_tpu.is_small(shape, stacked)
  expected = expected_step([*arrays, None], stacked)
  agree(kernel_step(*arrays, **HYPER_PARAMETERS, stacked=stacked), expected, shapes)
  # The two scales are on both sides of the clip.
  free = expected_step([*arrays, None], stacked, clipping=None)
  for name in shapes:
    assert np.array_equal(free[0][name], expected[0][name]) == (gradient_scale < 1)


@pytest.mark.parametrize("clipping", [CLIPPING, None])
@pytest.mark.parametrize(("shapes", "stacked"), [(SHAPES, False), (STACKS, True)])
def test_the_average_is_kept_in_the_same_pass(shapes, stacked, clipping):
  arrays = draw(shapes)
  arguments = {**HYPER_PARAMETERS, "average_decay": jnp.float32(0.75), "clipping": clipping}
  expected = expected_step(arrays, stacked, **arguments)
  *three, averages = arrays
  actual = kernel_step(*three, averages=averages, **arguments, stacked=stacked)
  agree(actual, expected, shapes)
  assert not np.array_equal(expected[2]["gain"], averages["gain"])


@pytest.mark.parametrize(("shapes", "stacked"), [(SHAPES, False), (STACKS, True)])
def test_gradients_that_have_traveled_in_bfloat16(shapes, stacked):
  parameters, gradients, buffers, _ = draw(shapes)
  arrays = (parameters, jax.tree.map(lambda x: x.astype(jnp.bfloat16), gradients), buffers)
  expected = expected_step([*arrays, None], stacked)
  agree(kernel_step(*arrays, **HYPER_PARAMETERS, stacked=stacked), expected, shapes)


def test_zeros_can_move_and_are_finite():
  _, gradients, *_ = draw(SHAPES)
  zeros = jax.tree.map(jnp.zeros_like, gradients)
  for three in ((zeros, gradients, zeros), (zeros, zeros, zeros)):
    expected = expected_step([*three, None])
    agree(kernel_step(*three, **HYPER_PARAMETERS), expected, SHAPES)


def test_more_than_fit_are_several_calls(monkeypatch):
  monkeypatch.setattr(small_tpu, "PARAMETERS_MAX", 4)
  # Five arrays of 384 x 192, the largest, fit, and nothing beside them.
  monkeypatch.setattr(small_tpu, "VMEM_BYTES", 5 * 4 * 384 * 256)
  arrays = draw(SHAPES)[:3]
  calls = list(small_tpu._calls(arrays[0], 5))
  assert [name for names in calls for name in names] == list(SHAPES)
  assert all(len(names) <= 4 for names in calls)
  assert ["squeeze"] in calls
  agree(kernel_step(*arrays, **HYPER_PARAMETERS), expected_step([*arrays, None]), SHAPES)


def test_says_what_it_does_not_cover():
  zeros = {"x": jnp.zeros(8, jnp.bfloat16)}
  with pytest.raises(NotImplementedError, match="dtype"):
    kernel_step(zeros, zeros, zeros, **HYPER_PARAMETERS)
  zeros = {"x": jnp.zeros(1_000_000)}
  with pytest.raises(NotImplementedError, match="does not fit VMEM"):
    kernel_step(zeros, zeros, zeros, **HYPER_PARAMETERS)


def test_inside_shard_map():
  """As the training step calls it: everything the same on each device."""
  mesh = jax.make_mesh((2,), ("data",), devices=jax.devices()[:2])
  step = functools.partial(kernel_step, **HYPER_PARAMETERS)
  sharded = jax.jit(jax.shard_map(step, mesh=mesh, in_specs=P(), out_specs=P()))
  arrays = draw(SHAPES)[:3]
  agree(sharded(*arrays), expected_step([*arrays, None]), SHAPES)


def test_the_op_gives_each_parameter_to_one_of_the_kernels(monkeypatch):
  def platform_dependent(*arguments, tpu, default):
    return tpu(*arguments)

  monkeypatch.setattr(jax.lax, "platform_dependent", platform_dependent)
  kernels.fallback_counts.clear()
  shapes = {"gain": (256,), "large": (512, 128), "bias": (256,), "filter": (3, 3, 64, 128)}
  assert [small_tpu.is_small(shape, False) for shape in shapes.values()] == [1, 0, 1, 0]
  *arrays, averages = draw(shapes)
  arguments = {**HYPER_PARAMETERS, "average_decay": jnp.float32(0.5)}
  step = kernels.sgd_agc(*arrays, averages, **arguments, implementation="pallas")
  expected = kernels.sgd_agc(*arrays, averages, **arguments)
  agree(step, expected, shapes)
  assert not kernels.fallback_counts
