"""The TPU v4 slices that Google Cloud offers (https://cloud.google.com/tpu/docs/v4)."""

import dataclasses
import math
import re

from nfnet.errors import UserError

CHIPS_PER_HOST = 4
_CHIPS_MAX = 4096
_CORES_PER_CHIP = 2
_BELOW_A_CUBE = ("2x2x1", "2x2x2", "2x2x4", "2x4x4")


@dataclasses.dataclass(frozen=True)
class Slice:
  """One TPU v4 slice.

  Attributes:
    topology: number of chips along each axis, for example "4x4x4".
  """

  topology: str

  @property
  def chips(self) -> int:
    """Returns the number of chips, each of which is one device to JAX."""
    return math.prod(map(int, self.topology.split("x")))

  @property
  def hosts(self) -> int:
    """Returns the number of hosts, each of which runs one process."""
    return self.chips // CHIPS_PER_HOST

  @property
  def accelerator_type(self) -> str:
    """Returns the name that counts TensorCores, for example "v4-128"."""
    return f"v4-{self.chips * _CORES_PER_CHIP}"


def parse_slice(name: str) -> Slice:
  """Parses a name such as "v4:4x4x4".

  Args:
    name: value of the flag --topology.

  Raises:
    UserError: there is no such slice.
  """
  match = re.fullmatch(r"v4:([1-9][0-9]{0,3}x[1-9][0-9]{0,3}x[1-9][0-9]{0,3})", name)
  if match is None:
    raise UserError(f"--topology={name}: write v4:AxBxC, for example v4:4x4x4 for 64 chips")
  sides = [int(side) for side in match[1].split("x")]
  is_of_cubes = all(side % 4 == 0 for side in sides) and sides == sorted(sides)
  if match[1] not in _BELOW_A_CUBE and not (is_of_cubes and math.prod(sides) <= _CHIPS_MAX):
    raise UserError(
      f"--topology={name}: there is no such slice; take v4:{', v4:'.join(_BELOW_A_CUBE)}, or "
      f"multiples of 4 that do not decrease, up to {_CHIPS_MAX} chips (v4:4x4x8, v4:8x8x16)"
    )
  return Slice(match[1])
