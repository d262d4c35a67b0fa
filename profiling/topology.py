"""Slices of TPUs that need not be there."""

import dataclasses
import math
import re
from typing import Any

from nfnet.errors import UserError
from profiling.chips import CHIPS, Chip


@dataclasses.dataclass(frozen=True)
class Topology:
  """A slice, for example "v4:2x2x1".

  Attributes:
    chip: of which it consists.
    sides: chips along each axis of the torus.
  """

  chip: Chip
  sides: tuple[int, ...]

  @property
  def name(self) -> str:
    """As libtpu names it."""
    return f"{self.chip.name}:{'x'.join(map(str, self.sides))}"

  @property
  def chips(self) -> int:
    """Of the whole slice."""
    return math.prod(self.sides)

  @property
  def devices(self) -> int:
    """As JAX counts them."""
    return self.chips * self.chip.cores // self.chip.cores_per_device

  def all_reduce_seconds(self, size_bytes: int) -> float:
    """Time to sum arrays of `size_bytes` over all chips, were the links the only limit.

    Every chip sends 2 (n - 1) / n of the bytes, over all its links at once: one along an axis of
    two chips, two along a longer one.
    """
    links = sum(min(side - 1, 2) for side in self.sides)
    if not links:
      return 0.0
    sent_bytes = 2 * (self.chips - 1) / self.chips * size_bytes
    return sent_bytes / (links * self.chip.link_bytes_per_second)


def parse_topology(name: str) -> Topology:
  """Reads a name.

  Raises:
    UserError: it is no name of a slice, or of a generation that is not known here.
  """
  match = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", name)
  if match is None or match[1] not in CHIPS:
    raise UserError(
      f"topology {name!r}: write GENERATION:SIDES, for example v4:2x2x1; "
      f"generations: {', '.join(CHIPS)}"
    )
  chip = CHIPS[match[1]]
  sides = tuple(map(int, match[2].split("x")))
  axes = chip.links // 2
  if len(sides) != axes or 0 in sides:
    raise UserError(
      f"topology {name!r}: a TPU {chip.name} slice has {axes} sides of at least one chip, for "
      f"example {chip.name}:{'x'.join('221'[:axes])}"
    )
  return Topology(chip, sides)


def describe_devices(topology: Topology) -> list[Any]:
  """JAX's devices of the slice, for compiling ahead of time; needs the extra `tpu`.

  Raises:
    UserError: the compiler knows no such slice, or is not installed.
  """
  from jax.experimental import topologies

  options = (
    {} if topology.chip.chip_config is None else {"chip_config_name": topology.chip.chip_config}
  )
  try:
    described = topologies.get_topology_desc(platform="tpu", topology_name=topology.name, **options)
  except Exception as error:
    raise UserError(
      f"topology {topology.name!r} cannot be described: {str(error).splitlines()[0]}"
    ) from error
  if len(described.devices) != topology.devices:
    raise UserError(
      f"topology {topology.name!r}: the compiler has {len(described.devices)} devices where "
      f"{topology.devices} were expected"
    )
  return described.devices
