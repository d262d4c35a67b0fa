"""The kernel of small parameters against the reference, in the TPU interpreter."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import kernels
from kernels.sgd_agc.problem import is_small
from kernels.sgd_agc.tile import calls_of_small
from tests.kernels.sgd_agc.steps import (
  CLIPPING,
  HYPER_PARAMETERS,
  assert_close,
  by_kernel,
  by_reference,
  draw,
)
from tests.lowering import as_on_a_tpu

pytestmark = pytest.mark.usefixtures("interpreted")
# Of the networks: vectors that fill tiles of 1024 and not, a skip gain, the stem's filters, and
# matrices of whole tiles and transposed ones.
SHAPES = {
  "gain": (2048,),
  "bias": (1536,),
  "classifier bias": (1000,),
  "stem bias": (16,),
  "skip gain": (),
  "stem 0": (3, 3, 3, 16),
  "stem 2": (3, 3, 32, 64),
  "excite": (16, 128),
  "squeeze": (1, 1, 128, 72),
  "narrow": (256, 24),
}
FEW = {name: SHAPES[name] for name in ("bias", "skip gain", "stem 0", "narrow")}
STACKS = {"gain": (3, 2048), "bias": (17, 384), "skip gain": (5,)}


@pytest.mark.parametrize("gradient_scale", [1e-4, 1.0])
@pytest.mark.parametrize(("shapes", "stacked"), [(SHAPES, False), (STACKS, True)])
def test_all_in_one_call(shapes, stacked, gradient_scale):
  arrays = draw(shapes, gradient_scale)
  for shape in shapes.values():
    assert is_small(shape, stacked)
  expected = by_reference(arrays, stacked=stacked)
  assert_close(by_kernel(arrays, stacked=stacked), expected, arrays, stacked=stacked)
  # The two scales are on both sides of the clip.
  free = by_reference(arrays, stacked=stacked, clipping=None)
  for name in shapes:
    is_free = np.array_equal(free.parameters[name], expected.parameters[name])
    assert is_free == (gradient_scale < 1)


@pytest.mark.parametrize("clipping", [CLIPPING, None])
@pytest.mark.parametrize(
  ("shapes", "stacked"),
  [(FEW, False), (STACKS, True), pytest.param(SHAPES, False, marks=pytest.mark.slow)],
)
def test_the_average_is_kept_in_the_same_pass(shapes, stacked, clipping):
  arrays = draw(shapes, has_ema=True)
  changes = dict(clipping=clipping, ema_decay=jnp.float32(0.75), stacked=stacked)
  expected = by_reference(arrays, **changes)
  assert_close(by_kernel(arrays, **changes), expected, arrays, stacked=stacked)
  assert not np.array_equal(expected.emas["bias"], arrays[3]["bias"])


@pytest.mark.parametrize(("shapes", "stacked"), [(FEW, False), (STACKS, True)])
def test_gradients_that_have_traveled_in_bfloat16(shapes, stacked):
  arrays = draw(shapes)
  arrays[1] = jax.tree.map(lambda x: x.astype(jnp.bfloat16), arrays[1])
  expected = by_reference(arrays, stacked=stacked)
  assert_close(by_kernel(arrays, stacked=stacked), expected, arrays, stacked=stacked)


def test_zeros_can_move_and_are_finite():
  _, gradients, *_ = draw(FEW)
  zeros = jax.tree.map(jnp.zeros_like, gradients)
  for arrays in ([zeros, gradients, zeros, None], [zeros, zeros, zeros, None]):
    assert_close(by_kernel(arrays), by_reference(arrays), arrays)


def test_more_parameters_than_fit_vmem_are_several_calls():
  # Five arrays of a long vector take 8.0 MB, of 10.5 MB.
  shapes = {"a": (8,), "b": (400_000,), "c": (8,), "d": (400_000,)}
  assert calls_of_small(shapes, arrays=5) == [["a", "b", "c"], ["d"]]
  arrays = draw(shapes)
  assert_close(by_kernel(arrays), by_reference(arrays), arrays)


def test_says_what_it_does_not_cover():
  for shape, dtype, reason in (((8,), jnp.bfloat16, "dtype"), ((1_000_000,), None, "fit VMEM")):
    zeros = {"x": jnp.zeros(shape, dtype)}
    with pytest.raises(NotImplementedError, match=reason):
      by_kernel([zeros, zeros, zeros, None])


def test_inside_shard_map():
  """The training step calls it like this: everything is the same on each device."""
  mesh = jax.make_mesh((2,), ("data",), devices=jax.devices()[:2])
  arrays = draw(FEW)

  @functools.partial(jax.shard_map, mesh=mesh, in_specs=P(), out_specs=P())
  def sharded(*trees):
    return by_kernel([*trees, None], **HYPER_PARAMETERS)

  assert_close(jax.jit(sharded)(*arrays[:3]), by_reference(arrays), arrays)


def test_the_op_gives_each_parameter_to_one_of_the_kernels(monkeypatch):
  monkeypatch.setattr(jax.lax, "platform_dependent", as_on_a_tpu)
  kernels.fallback_counts.clear()
  shapes = {"gain": (256,), "large": (512, 128), "bias": (256,), "filter": (3, 3, 64, 128)}
  assert [is_small(shape, False) for shape in shapes.values()] == [1, 0, 1, 0]
  arrays = draw(shapes, has_ema=True)
  arguments = {**HYPER_PARAMETERS, "ema_decay": jnp.float32(0.5)}
  step = kernels.sgd_agc_step(*arrays, **arguments, implementation="pallas")
  assert_close(step, kernels.sgd_agc_step(*arrays, **arguments), arrays)
  assert not kernels.fallback_counts


def test_averages_need_a_decay_and_a_decay_averages():
  arrays = draw({"x": (8,)}, has_ema=True)
  with pytest.raises(ValueError, match="moving averages need a decay"):
    kernels.sgd_agc_step(*arrays, **HYPER_PARAMETERS)
  with pytest.raises(ValueError, match="nothing else takes one"):
    kernels.sgd_agc_step(*arrays[:3], **{**HYPER_PARAMETERS, "ema_decay": jnp.float32(0.5)})
