"""Sums that travel around the parameter shards."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from train.step.sharding.mesh import DATA_AXES, SHARD_AXIS, make_mesh
from train.step.sharding.rings import are_moving, finish, receive, send, start_rings, tied

# One has more than half of the bytes. Kernels cover the two that have 128 columns.
AXES = {"first": 0, "last": 1, "middle": 1, "large": 1, "rows": 1, "columns": 1}
SHAPES = {
  "first": (16, 3),
  "last": (3, 8),
  "middle": (2, 8, 3),
  "large": (3, 256, 128),
  "rows": (2, 64, 128),
  "columns": (8, 1024),
}


def gradients():
  generator = np.random.default_rng(0)
  # Small integers, whose sums are exact in any order.
  return {
    name: generator.integers(-9, 9, (8, *shape)).astype(np.float32)
    for name, shape in SHAPES.items()
  }


def on_shards(shards, function):
  """Returns the result of a function of each device's gradients, on replicas of shards."""
  specs = {name: P(*[None] * axis, SHARD_AXIS) for name, axis in AXES.items()}

  def of_device(gradients):
    parts = function({name: gradient[0] for name, gradient in gradients.items()})
    return {name: jax.lax.psum(part, "replica") for name, part in parts.items()}

  mesh = make_mesh(parameter_shards=shards)
  run = jax.shard_map(of_device, mesh=mesh, in_specs=P(DATA_AXES), out_specs=specs)
  return jax.jit(run)(gradients())


@pytest.mark.parametrize("implementation", ["reference", "pallas"])
@pytest.mark.parametrize("shards", [1, 2, 4, 8])
def test_each_shard_gets_the_sum_of_its_own_part(shards, implementation):
  @functools.partial(on_shards, shards)
  def sums(gradients):
    rings = start_rings(gradients, AXES, implementation)
    pieces = [piece for ring in rings for piece in ring.pieces]
    assert {piece.direction for piece in pieces} == {1, -1}
    assert {piece.half for piece in pieces if piece.name == "large"} == {0, 1}
    # A kernel reads halves of parts in place.
    halved = {piece.halved_axis for piece in pieces if piece.name == "large"}
    assert halved == ({1} if implementation == "pallas" else {2})
    packed = [{piece.name for piece in ring.pieces} for ring in rings if ring.is_packed]
    assert packed == ([{"large", "rows", "columns"}] if implementation == "pallas" else [])
    return finish(rings)

  for name, of_devices in gradients().items():
    np.testing.assert_array_equal(sums[name], of_devices.sum(0))


def test_hops_may_be_made_one_by_one_beside_other_work():
  @functools.partial(on_shards, 4)
  def sums(gradients):
    rings, work = start_rings(gradients, AXES, "pallas"), jnp.float32(0)
    hops = 0
    while are_moving(rings):
      work, arrived = tied(jnp.sin(work), send(rings))
      rings = receive(rings, arrived)
      hops += 1
    assert hops == 3
    return {name: part + work for name, part in finish(rings).items()}

  for name, of_devices in gradients().items():
    np.testing.assert_array_equal(sums[name], of_devices.sum(0))


@pytest.mark.parametrize(
  "sizes",
  [
    {"a": 400, "b": 300, "c": 200, "d": 100},
    {"a": 800, "b": 40, "c": 40},
    # The halves of the first one are smaller than the second.
    {"a": 416, "b": 384},
  ],
)
def test_about_half_of_the_bytes_travel_in_each_direction(sizes):
  found = []

  def body(x):
    gradients = {name: jnp.zeros((4, size // 4)) for name, size in sizes.items()}
    rings = start_rings(gradients, dict.fromkeys(sizes, 0), "reference")
    for ring in rings:
      found.extend((piece.direction, ring.sums[0].nbytes) for piece in ring.pieces)
    return x

  mesh = make_mesh(parameter_shards=4)
  jax.jit(jax.shard_map(body, mesh=mesh, in_specs=P(), out_specs=P())).lower(jnp.zeros(()))
  sent_bytes = sum(size_bytes for _, size_bytes in found)
  # A part is a quarter of them, with four bytes each.
  assert sent_bytes == sum(sizes.values())
  assert abs(sum(direction * size_bytes for direction, size_bytes in found)) <= sent_bytes / 2


@pytest.mark.parametrize(
  ("shape", "axis", "sizes"),
  [
    # The first half ends where a tile of memory ends,
    ((24, 520), 0, [6 * 256, 6 * 264]),
    # and both are stored by output, as the whole is: neither has a multiple of 128 outputs.
    ((512, 264), 0, [128 * 112, 128 * 152]),
    ((512, 496), 0, [128 * 224, 128 * 272]),
    ((23, 8), 1, [11 * 2, 12 * 2]),
    ((3, 8, 6), 1, [3 * 2 * 3, 3 * 2 * 3]),
    # There is nothing to cut but the parts.
    ((24, 1), 0, [6]),
    ((24,), 0, [6]),
  ],
)
def test_a_gradient_that_no_kernel_adds_goes_both_ways_in_halves(shape, axis, sizes):
  values = np.random.default_rng(0).integers(-9, 9, (8, *shape)).astype(np.float32)
  mesh = make_mesh(parameter_shards=4)

  def body(own):
    rings = start_rings({"only": own[0]}, {"only": axis}, "pallas")
    assert [ring.sums[0].size for ring in rings] == sizes
    return jax.lax.psum(finish(rings)["only"], "replica")

  spec = P(*[None] * axis, SHARD_AXIS)
  run = jax.shard_map(body, mesh=mesh, in_specs=P(DATA_AXES), out_specs=spec)
  np.testing.assert_array_equal(jax.jit(run)(values), values.sum(0))
