"""Describes TPU slices by name; the slices need not be there.

Only `describe_devices` imports JAX, and it does so when it is called.
"""

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

from nfnet.errors import UserError
from profiling.compiler_text.chips import CHIPS, Chip

_CHIPS_MAX = 9216
"""Chips of the largest pod of any generation, which is that of tpu7x."""
_ONE_WAY = ("all-gather", "reduce-scatter", "all-to-all", "collective-permute")


@dataclasses.dataclass(frozen=True)
class Topology:
  """A TPU slice, for example "v4:2x2x1".

  Attributes:
    chip: generation of its chips.
    sides: number of chips along each axis of the torus.
  """

  chip: Chip
  sides: tuple[int, ...]

  @property
  def name(self) -> str:
    """Returns libtpu's name of the slice."""
    return f"{self.chip.name}:{'x'.join(map(str, self.sides))}"

  @property
  def chips(self) -> int:
    """Returns the number of chips of the whole slice."""
    return math.prod(self.sides)

  @property
  def devices(self) -> int:
    """Returns the number of devices of the whole slice, as JAX counts them."""
    return self.chips * self.chip.cores // self.chip.cores_per_device

  def collective_seconds(
    self, opcode: str, whole_bytes: int, sides: Sequence[int] | None = None
  ) -> float:
    """Returns the time that a collective would take if the links were the only limit.

    Each of n chips sends (n - 1) / n of the whole arrays, and twice that for a sum that all chips
    get: each chip sums one part, and the parts are then gathered. All links work at once: one along
    an axis of two chips, two along a longer one.

    Args:
      opcode: name of the collective in the compiler's text; one that is not known to send its
        arrays once is timed as a sum.
      whole_bytes: size of the arrays before they are scattered or after they are gathered.
      sides: number of chips along each axis that take part together; None is the whole slice.
    """
    sides = self.sides if sides is None else sides
    chips = math.prod(sides)
    links = sum(min(side - 1, 2) for side in sides)
    if not links:
      return 0.0
    times = 1 if opcode in _ONE_WAY else 2
    sent_bytes = times * (chips - 1) / chips * whole_bytes
    return sent_bytes / (links * self.chip.link_bytes_per_second)


def parse_topology(name: str) -> Topology:
  """Returns the slice called `name`.

  Raises:
    UserError: the name is not that of a slice, or its generation is unknown.
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
  topology = Topology(chip, sides)
  # Otherwise the compiler refuses the slice in words of its own, or does not come back.
  if sides[0] % 2 or sides[1] % 2 or topology.chips > _CHIPS_MAX:
    raise UserError(
      f"topology {name!r}: the first two sides must be even, because a host has 2 x 2 chips, and a "
      f"slice has at most {_CHIPS_MAX} chips"
    )
  return topology


def describe_devices(topology: Topology) -> list[Any]:
  """Returns JAX's devices of the slice, to compile for ahead of time; needs the extra `tpu`.

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
