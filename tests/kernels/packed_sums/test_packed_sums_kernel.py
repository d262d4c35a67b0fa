"""The kernel of packed sums against the reference, in the TPU interpreter."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from kernels.packed_sums import pallas, reference
from kernels.packed_sums.formulas import Part

pytestmark = pytest.mark.usefixtures("interpreted")

# Gradients of a segment, as they are divided among four shards: filters as rows, of which one part
# has several leading indices and one has only rows to divide, and matrices by columns.
SHAPES = ((9, 1, 128, 128), (1, 3, 128, 128), (96, 1024), (1, 2, 256, 128))
PARTS = (Part(2, 4, 0), Part(2, 4, 1), Part(1, 4, 0), Part(2, 8, 1))
INDICES = (3, 0, 1, 7)


def gradients(dtype, seed=0):
  generator = np.random.default_rng(seed)
  return tuple(jnp.asarray(generator.standard_normal(shape), dtype) for shape in SHAPES)


def added(add_parts, packed, gradients, *, unpacks=False, indices=INDICES):
  return add_parts(packed, gradients, jnp.asarray(indices), parts=PARTS, unpacks=unpacks)


def assert_equal(ours, expected):
  assert jax.tree.structure(ours) == jax.tree.structure(expected)
  for one, other in zip(ours, expected, strict=True):
    assert (one.shape, one.dtype) == (other.shape, other.dtype)
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_sums_are_those_of_the_reference_to_the_bit(dtype):
  first, second = gradients(dtype), gradients(dtype, seed=1)
  packed = added(reference.add_parts, None, first)
  assert_equal(added(pallas.add_parts, None, first), packed)
  assert_equal(added(pallas.add_parts, packed, second), added(reference.add_parts, packed, second))
  assert_equal(
    added(pallas.add_parts, packed, second, unpacks=True),
    added(reference.add_parts, packed, second, unpacks=True),
  )


@pytest.mark.usefixtures("on_two_cores")
def test_cores_that_share_the_steps_do_not_race():
  first, second = gradients("bfloat16"), gradients("bfloat16", seed=1)
  packed = added(reference.add_parts, None, first)
  assert_equal(added(pallas.add_parts, packed, second), added(reference.add_parts, packed, second))


def test_inside_shard_map_each_device_adds_its_own_part():
  mesh = Mesh(np.array(jax.devices()[:4]), ("shard",))

  @functools.partial(jax.shard_map, mesh=mesh, in_specs=P("shard"), out_specs=P("shard"))
  def part(x):
    index = jax.lax.axis_index("shard")[None]
    (packed,) = pallas.add_parts(None, (x[0],), index, parts=(Part(1, 4, 0),), unpacks=False)
    (total,) = pallas.add_parts((packed,), (x[0],), index, parts=(Part(1, 4, 0),), unpacks=True)
    return total[None]

  x = np.arange(4 * 9 * 64 * 128, dtype=np.float32).reshape(4, 9, 64, 128) % 251
  expected = [2 * x[i, :, 16 * i : 16 * (i + 1)] for i in range(4)]
  np.testing.assert_array_equal(jax.jit(part)(x), np.stack(expected))


@pytest.mark.parametrize(
  ("shape", "part", "reason"),
  [
    ((9, 1, 128, 128), Part(2, 16, 0), "fill tiles"),
    ((96, 768), Part(1, 4, 0), "fill tiles"),
    ((64,), Part(0, 4, 0), "fill tiles"),
    ((16, 128, 128), Part(0, 4, 0), "fill tiles"),
    ((64, 2048, 2048), Part(1, 2, 0), "VMEM"),
  ],
)
def test_says_what_it_does_not_cover(shape, part, reason):
  x = jax.ShapeDtypeStruct(shape, jnp.bfloat16)
  with pytest.raises(NotImplementedError, match=reason):
    jax.eval_shape(
      functools.partial(pallas.add_parts, parts=(part,), unpacks=False),
      None,
      (x,),
      jax.ShapeDtypeStruct((1,), jnp.int32),
    )
