"""Sums gradients over the parameter shards in rings, while earlier layers compute theirs.

A partial sum of one part of a gradient travels from shard to shard, and each adds its own. After as
many hops as there are other shards, each shard has the sum of its own part: a reduce-scatter. XLA
sums on a TPU v4 while nothing else runs, but sends a permutation beside whatever lies between its
start and its end.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

import kernels
from kernels import Implementation
from kernels.layout import is_stored_by_output, tile_rows
from kernels.packed_sums.formulas import Part, covers
from train.step.sharding.mesh import SHARD_AXIS

DIRECTIONS = (1, -1)
"""Partial sums travel to the next shard, or to the previous one."""

_PACKED_MAX = 16
"""Largest number of gradients that travel packed; a segment has fewer."""


class Piece(NamedTuple):
  """The parts of one gradient, or halves of them, that travel in one direction.

  Attributes:
    name: name of the gradient.
    gradient: this device's own gradient, whole.
    axis: axis of the gradient that is divided among the shards.
    direction: one of `DIRECTIONS`.
    half: number of the half that travels; 0 if whole parts do.
    halved_axis: axis that the halves are cut across; None if whole parts travel.
  """

  name: str
  gradient: Array
  axis: int
  direction: Literal[1, -1]
  half: Literal[0, 1] = 0
  halved_axis: int | None = None

  @property
  def parts(self) -> int:
    """Returns the number of parts into which `axis` is divided."""
    return _shards() * (2 if self.halved_axis == self.axis else 1)

  @property
  def nbytes(self) -> int:
    """Returns the number of bytes that travel."""
    _, sizes = self._bounds(0)
    return math.prod(sizes) * self.gradient.dtype.itemsize

  def index(self, hops: int) -> Array:
    """Returns the number of the part that this shard adds after a number of hops."""
    shard = (jax.lax.axis_index(SHARD_AXIS) - self.direction * (hops + 1)) % _shards()
    return 2 * shard + self.half if self.halved_axis == self.axis else shard

  def own(self, index: Array) -> Array:
    """Returns this device's own gradient of the part with a number, or of the half that travels."""
    return jax.lax.dynamic_slice(self.gradient, *self._bounds(index))

  def _bounds(self, index: Array | int) -> tuple[list[Array | int], list[int]]:
    """Returns where the part begins along each axis of the gradient, and how long it is."""
    starts, sizes = [0] * self.gradient.ndim, list(self.gradient.shape)
    sizes[self.axis] //= self.parts
    starts[self.axis] = index * sizes[self.axis]
    if self.halved_axis not in (None, self.axis):
      size, middle = sizes[self.halved_axis], _middle(self.gradient.shape, self.halved_axis)
      starts[self.halved_axis] = middle if self.half else 0
      sizes[self.halved_axis] = size - middle if self.half else middle
    return starts, sizes


class Ring(NamedTuple):
  """Sums that make their hops together.

  Attributes:
    pieces: what is summed.
    is_packed: whether `kernels.add_parts` packs the sums, so that there is one array for each
      direction; otherwise there is one piece.
    sums: arrays that travel or, after the last hop, the sum of this shard's part of each piece.
    hops: number of hops made.
  """

  pieces: tuple[Piece, ...]
  is_packed: bool
  sums: tuple[Array, ...]
  hops: int

  @property
  def directions(self) -> tuple[int, ...]:
    """Returns the direction of each array that travels."""
    found = {piece.direction for piece in self.pieces}
    return tuple(direction for direction in DIRECTIONS if direction in found)


Rings = tuple[Ring, ...]


def start_rings(
  gradients: Mapping[str, Array], axes: Mapping[str, int], implementation: Implementation
) -> Rings:
  """Returns rings that have not moved yet; for use inside of `shard_map`.

  Half of the bytes travel in each direction, because links work in both directions at once. A
  gradient that has more than half of them goes both ways.

  Args:
    gradients: gradients of this device's examples by name, in the dtype in which they travel.
    axes: for each name, the axis that is divided among the shards.
    implementation: "pallas" packs sums where the kernel covers them, "reference" adds each on its
      own.
  """
  packed, rings = [], []
  for piece in _pieces(gradients, axes, implementation):
    if _is_packed(piece.gradient, piece.axis, piece.parts, implementation):
      packed.append(piece)
    else:
      rings.append(Ring((piece,), False, (), hops=-1))
  for i in range(0, len(packed), _PACKED_MAX):
    rings.append(Ring(tuple(packed[i : i + _PACKED_MAX]), True, (), hops=-1))
  return tuple(_after_hop(ring, None) for ring in rings)


def are_moving(rings: Rings) -> bool:
  """Returns whether a ring has not made all of its hops."""
  return any(map(_is_moving, rings))


def send(rings: Rings) -> list[tuple[Array, ...]]:
  """Sends each partial sum to the next shard.

  Returns:
    What arrives at this shard for each ring; nothing for a ring that has made all of its hops.
  """
  return [
    tuple(
      jax.lax.ppermute(partial, SHARD_AXIS, _neighbors(direction))
      for partial, direction in zip(ring.sums, ring.directions, strict=True)
    )
    if _is_moving(ring)
    else ()
    for ring in rings
  ]


def receive(rings: Rings, arrived: Sequence[tuple[Array, ...]]) -> Rings:
  """Returns the rings after a hop.

  Args:
    rings: rings before the hop.
    arrived: what `send(rings)` has returned.
  """
  return tuple(
    _after_hop(ring, partials) if partials else ring
    for ring, partials in zip(rings, arrived, strict=True)
  )


def finish(rings: Rings) -> dict[str, Array]:
  """Returns the sum over all shards of this shard's part of each gradient, by name."""
  while are_moving(rings):
    rings = receive(rings, send(rings))
  sums = {
    (piece.name, piece.half): (total, piece.halved_axis)
    for ring in rings
    for piece, total in zip(ring.pieces, ring.sums, strict=True)
  }
  return {
    name: total if axis is None else jnp.concatenate([total, sums[name, 1][0]], axis)
    for (name, half), (total, axis) in sums.items()
    if half == 0
  }


def tied(value: Any, arrived: Sequence[tuple[Array, ...]]) -> tuple[Any, Sequence]:
  """Returns the same arrays, none of which is available before all are.

  XLA would otherwise put all hops behind the last kernel.
  """
  return jax.lax.optimization_barrier((value, arrived)) if any(arrived) else (value, arrived)


def _pieces(
  gradients: Mapping[str, Array], axes: Mapping[str, int], implementation: Implementation
) -> list[Piece]:
  """Divides the bytes of gradients among the directions, the largest gradient first."""
  total_bytes = sum(gradient.nbytes for gradient in gradients.values())
  pieces, sent_bytes = [], dict.fromkeys(DIRECTIONS, 0)
  for name in sorted(gradients, key=lambda name: (-gradients[name].nbytes, name)):
    gradient, axis = gradients[name], axes[name]
    if 2 * gradient.nbytes > total_bytes:
      added = _halves(name, gradient, axis, implementation)
    else:
      added = [Piece(name, gradient, axis, min(sent_bytes, key=sent_bytes.get))]
    for piece in added:
      sent_bytes[piece.direction] += piece.nbytes
    pieces += added
  return pieces


def _halves(name: str, gradient: Array, axis: int, implementation: Implementation) -> list[Piece]:
  """Divides a gradient among the directions.

  The packing kernel reads halves of parts in place. Without it, halves are cut across another axis:
  a part of 384 inputs of the classifier fills the lanes, and half of it does not, so that XLA would
  copy it before and after each hop.
  """
  halved_axis = axis
  if not _is_packed(gradient, axis, 2 * _shards(), implementation):
    # One of the last two, which are those of the matrix.
    halved_axis = next((i for i in reversed(range(gradient.ndim)) if i != axis), None)
    if halved_axis is None or gradient.shape[halved_axis] < 2:
      return [Piece(name, gradient, axis, DIRECTIONS[0])]
  return [
    Piece(name, gradient, axis, direction, half, halved_axis)
    for half, direction in enumerate(DIRECTIONS)
  ]


def _middle(shape: tuple[int, ...], axis: int) -> int:
  """Returns where to cut an array in about the middle, so that XLA does not copy the halves.

  A tile of memory ends there, and XLA stores both halves as it stores the whole.
  """

  def is_kept(middle: int) -> bool:
    sizes = middle, shape[axis] - middle
    halves = [(*shape[:axis], size, *shape[axis + 1 :]) for size in sizes]
    return all(is_stored_by_output(half) == is_stored_by_output(shape) for half in halves)

  middle, rows = shape[axis] // 2, tile_rows(2)
  return next(filter(is_kept, range(middle - middle % rows, 0, -rows)), middle)


def _is_packed(gradient: Array, axis: int, parts: int, implementation: Implementation) -> bool:
  """Returns whether `kernels.add_parts` adds the parts of a gradient."""
  return implementation == "pallas" and covers(
    gradient.shape, Part(axis, parts, 0), gradient.dtype.itemsize
  )


def _after_hop(ring: Ring, partials: tuple[Array, ...] | None) -> Ring:
  """Returns a ring in which this shard's parts have been added to what has arrived."""
  hops = ring.hops + 1
  indices = [piece.index(hops) for piece in ring.pieces]
  if ring.is_packed:
    sums = kernels.add_parts(
      partials,
      tuple(piece.gradient for piece in ring.pieces),
      jnp.stack(indices).astype(jnp.int32),
      parts=tuple(
        Part(piece.axis, piece.parts, ring.directions.index(piece.direction))
        for piece in ring.pieces
      ),
      unpacks=hops == _shards() - 1,
      implementation="pallas",
    )
  else:
    (piece,), (index,) = ring.pieces, indices
    own = piece.own(index)
    sums = (own if partials is None else partials[0] + own,)
  return ring._replace(sums=sums, hops=hops)


def _is_moving(ring: Ring) -> bool:
  return ring.hops < _shards() - 1


def _shards() -> int:
  return jax.lax.axis_size(SHARD_AXIS)


def _neighbors(direction: int) -> list[tuple[int, int]]:
  return [(shard, (shard + direction) % _shards()) for shard in range(_shards())]
