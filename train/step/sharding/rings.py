"""Sums gradients over the parameter shards in rings, while earlier layers compute theirs.

A partial sum of one part of a gradient travels from shard to shard, and each adds its own. After as
many hops as there are other shards, each shard has the sum of its own part: a reduce-scatter. XLA
sums on a TPU v4 while nothing else runs, but sends a permutation beside whatever lies between its
start and its end.
"""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import jax
from jaxtyping import Array

from train.step.sharding.mesh import SHARD_AXIS


class Ring(NamedTuple):
  """A sum on its way.

  Attributes:
    gradient: this device's own gradient, whole.
    partial: sum of the part that is here now, over the shards that it has visited.
    axis: axis of the gradient that is divided among the shards.
    direction: 1 if partial sums travel to the next shard, -1 if they travel to the previous one.
    hops: number of hops made.
  """

  gradient: Array
  partial: Array
  axis: int
  direction: Literal[1, -1]
  hops: int


def start_rings(gradients: Mapping[str, Array], axes: Mapping[str, int]) -> dict[str, Ring]:
  """Returns rings that have not moved yet; for use inside of `shard_map`.

  Half of the bytes travel in each direction, because links work in both directions at once.

  Args:
    gradients: gradients of this device's examples by name, in the dtype in which they travel.
    axes: for each name, the axis that is divided among the shards.
  """
  rings, bytes_by_direction = {}, {1: 0, -1: 0}
  for name in sorted(gradients, key=lambda name: (-gradients[name].nbytes, name)):
    gradient, axis = gradients[name], axes[name]
    direction = min(bytes_by_direction, key=bytes_by_direction.get)
    bytes_by_direction[direction] += gradient.nbytes
    rings[name] = Ring(gradient, _part(gradient, axis, -direction), axis, direction, hops=0)
  return rings


def moving(rings: Mapping[str, Ring]) -> dict[str, Ring]:
  """Returns the rings that have not made all of their hops."""
  return {name: ring for name, ring in rings.items() if ring.hops < _shards() - 1}


def send(rings: Mapping[str, Ring]) -> dict[str, Array]:
  """Sends each partial sum to the next shard, and returns what arrives at this one."""
  return {
    name: jax.lax.ppermute(ring.partial, SHARD_AXIS, _neighbors(ring.direction))
    for name, ring in rings.items()
  }


def receive(rings: Mapping[str, Ring], arrived: Mapping[str, Array]) -> dict[str, Ring]:
  """Returns the rings after a hop.

  Args:
    rings: rings before the hop.
    arrived: what `send(rings)` has returned.
  """

  def after_hop(ring: Ring, partial: Array) -> Ring:
    hops = ring.hops + 1
    own = _part(ring.gradient, ring.axis, -ring.direction * (hops + 1))
    return ring._replace(partial=partial + own, hops=hops)

  return {name: after_hop(ring, arrived[name]) for name, ring in rings.items()}


def finish(ring: Ring) -> Array:
  """Returns the sum over all shards of this shard's part."""
  rings = {"": ring}
  while moving(rings):
    rings = receive(rings, send(rings))
  return rings[""].partial


def tied(value: Any, arrived: Mapping[str, Array]) -> tuple[Any, dict[str, Array]]:
  """Returns the same arrays, none of which is available before all are.

  XLA would otherwise put all hops behind the last kernel.
  """
  return jax.lax.optimization_barrier((value, arrived)) if arrived else (value, {})


def _shards() -> int:
  return jax.lax.axis_size(SHARD_AXIS)


def _neighbors(direction: int) -> list[tuple[int, int]]:
  return [(shard, (shard + direction) % _shards()) for shard in range(_shards())]


def _part(gradient: Array, axis: int, offset: int) -> Array:
  """Returns the part of a gradient that belongs to the shard at an offset from this one."""
  size = gradient.shape[axis] // _shards()
  shard = (jax.lax.axis_index(SHARD_AXIS) + offset) % _shards()
  return jax.lax.dynamic_slice_in_dim(gradient, shard * size, size, axis)
