"""Sums gradients over the parameter shards in rings, while earlier layers compute theirs.

A partial sum of one part of a gradient travels from shard to shard, and each adds its own. After as
many hops as there are other shards, each shard has the sum of its own part: a reduce-scatter. XLA
sums on a TPU v4 while nothing else runs, but sends a permutation beside whatever lies between its
start and its end.
"""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from train.step.sharding.mesh import SHARD_AXIS


class Ring(NamedTuple):
  """A sum on its way.

  Attributes:
    gradient: this device's own gradient, whole.
    axis: axis of the gradient that is divided among the shards.
    half: 0 or 1 if one half of each part travels, None if whole parts do.
    direction: 1 if partial sums travel to the next shard, -1 if they travel to the previous one.
    partial: sum of the part that is here now, over the shards that it has visited.
    hops: number of hops made.
  """

  gradient: Array
  axis: int
  half: Literal[0, 1] | None
  direction: Literal[1, -1]
  partial: Array
  hops: int


Rings = dict[tuple[str, Literal[0, 1] | None], Ring]
"""Rings by the gradient's name and the half that travels."""


def start_rings(gradients: Mapping[str, Array], axes: Mapping[str, int]) -> Rings:
  """Returns rings that have not moved yet; for use inside of `shard_map`.

  Half of the bytes travel in each direction, because links work in both directions at once. A
  gradient that has more than half of them goes both ways.

  Args:
    gradients: gradients of this device's examples by name, in the dtype in which they travel.
    axes: for each name, the axis that is divided among the shards.
  """
  total_bytes = sum(gradient.nbytes for gradient in gradients.values())
  rings, sent_bytes = {}, {1: 0, -1: 0}

  def start(name, half, direction):
    gradient, axis = gradients[name], axes[name]
    part = _part(gradient, axis, half, -direction)
    sent_bytes[direction] += part.nbytes
    rings[name, half] = Ring(gradient, axis, half, direction, part, hops=0)

  for name in sorted(gradients, key=lambda name: (-gradients[name].nbytes, name)):
    gradient, axis = gradients[name], axes[name]
    if 2 * gradient.nbytes > total_bytes and gradient.shape[axis] % (2 * _shards()) == 0:
      start(name, 0, 1)
      start(name, 1, -1)
    else:
      start(name, None, min(sent_bytes, key=sent_bytes.get))
  return rings


def moving(rings: Rings) -> Rings:
  """Returns the rings that have not made all of their hops."""
  return {name: ring for name, ring in rings.items() if ring.hops < _shards() - 1}


def send(rings: Rings) -> dict[Any, Array]:
  """Sends each partial sum to the next shard, and returns what arrives at this one."""
  return {
    name: jax.lax.ppermute(ring.partial, SHARD_AXIS, _neighbors(ring.direction))
    for name, ring in rings.items()
  }


def receive(rings: Rings, arrived: Mapping[Any, Array]) -> Rings:
  """Returns the rings after a hop.

  Args:
    rings: rings before the hop.
    arrived: what `send(rings)` has returned.
  """

  def after_hop(ring: Ring, partial: Array) -> Ring:
    hops = ring.hops + 1
    own = _part(ring.gradient, ring.axis, ring.half, -ring.direction * (hops + 1))
    return ring._replace(partial=partial + own, hops=hops)

  return {key: after_hop(ring, arrived[key]) for key, ring in rings.items()}


def finish(rings: Rings) -> dict[str, Array]:
  """Returns the sum over all shards of this shard's part of each gradient, by name."""
  rings = dict(rings)
  while on_their_way := moving(rings):
    rings |= receive(on_their_way, send(on_their_way))
  return {
    name: ring.partial
    if half is None
    else jnp.concatenate([ring.partial, rings[name, 1].partial], ring.axis)
    for (name, half), ring in rings.items()
    if half != 1
  }


def tied(value: Any, arrived: Mapping[Any, Array]) -> tuple[Any, dict[Any, Array]]:
  """Returns the same arrays, none of which is available before all are.

  XLA would otherwise put all hops behind the last kernel.
  """
  if not arrived:
    return value, {}
  # A list, because a dictionary's keys would have to be sorted, and these have parts of two types.
  value, arrays = jax.lax.optimization_barrier((value, list(arrived.values())))
  return value, dict(zip(arrived, arrays, strict=True))


def _shards() -> int:
  return jax.lax.axis_size(SHARD_AXIS)


def _neighbors(direction: int) -> list[tuple[int, int]]:
  return [(shard, (shard + direction) % _shards()) for shard in range(_shards())]


def _part(gradient: Array, axis: int, half: Literal[0, 1] | None, offset: int) -> Array:
  """Returns what belongs to the shard at an offset from this one, or a half of it."""
  shard = (jax.lax.axis_index(SHARD_AXIS) + offset) % _shards()
  size = gradient.shape[axis] // _shards()
  if half is not None:
    size //= 2
    shard = 2 * shard + half
  return jax.lax.dynamic_slice_in_dim(gradient, shard * size, size, axis)
