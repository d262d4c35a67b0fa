"""Slices of TPUs that need not be there."""

import dataclasses
import math
import re
from typing import Any

from nfnet.errors import UserError
from profiling.compiler_text.chips import CHIPS, Chip

_ONE_WAY = ("all-gather", "reduce-scatter", "all-to-all", "collective-permute")


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

  def collective_seconds(
    self, opcode: str, whole_bytes: int, group_devices: int | None = None
  ) -> float:
    """Time of a collective, were the links the only limit.

    Of n chips, each sends (n - 1) / n of the whole arrays, twice for a sum that all chips get: the
    parts are summed on one each and then gathered. All links work at once: one along an axis of
    two chips, two along a longer one. A group that is not the whole slice is taken to lie along one
    axis, which is an upper bound.

    Args:
      opcode: of the compiler's text; what is not known to send once is timed as a sum.
      whole_bytes: of the arrays before they are scattered or after they are gathered.
      group_devices: that take part together; None is all.
    """
    is_whole = group_devices is None or group_devices == self.devices
    chips = self.chips if is_whole else group_devices
    sides = self.sides if is_whole else (group_devices,)
    links = sum(min(side - 1, 2) for side in sides)
    if not links:
      return 0.0
    times = 1 if opcode in _ONE_WAY else 2
    sent_bytes = times * (chips - 1) / chips * whole_bytes
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
