"""What a TPU chip can do, and the one place where core-hours are counted.

TPU v4: Jouppi et al., arXiv 2304.01433, table 4; TPU v3: table 4 there and arXiv 2102.06171,
appendix. A core is a TensorCore; both generations have two a chip.
"""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
  """One generation.

  Attributes:
    name: as in topology names, for example "v4".
    cores: TensorCores.
    clock_hz: of the cores.
    peak_flops: a second, bfloat16, over all cores; a multiply-add is two.
    hbm_bytes: of high-bandwidth memory.
    hbm_bytes_per_second: its bandwidth.
    links: to neighbors, of a chip inside a torus.
    link_bytes_per_second: of one link, in one direction.
    chip_config: how JAX has to name the mode in which one device is a whole chip; None where the
      compiler knows only one mode.
    cores_per_device: in that mode.
  """

  name: str
  cores: int
  clock_hz: float
  peak_flops: float
  hbm_bytes: int
  hbm_bytes_per_second: float
  links: int
  link_bytes_per_second: float
  chip_config: str | None
  cores_per_device: int

  @property
  def hbm_bytes_per_device(self) -> int:
    """A device's share of the chip's memory."""
    return self.hbm_bytes * self.cores_per_device // self.cores


CHIPS: dict[str, Chip] = {
  chip.name: chip
  for chip in (
    Chip(
      name="v4",
      cores=2,
      clock_hz=1.05e9,
      peak_flops=275e12,
      hbm_bytes=32 * 2**30,
      hbm_bytes_per_second=1.2e12,
      links=6,
      link_bytes_per_second=50e9,
      # Without it the compiler takes split mode: two devices of one core.
      chip_config="megacore",
      cores_per_device=2,
    ),
    Chip(
      name="v3",
      cores=2,
      clock_hz=0.94e9,
      peak_flops=123e12,
      hbm_bytes=32 * 2**30,
      hbm_bytes_per_second=9e11,
      links=4,
      link_bytes_per_second=70e9,
      chip_config=None,
      cores_per_device=1,
    ),
  )
}


def core_hours(chip: Chip, chips: int, seconds: float) -> float:
  """TensorCore-hours: chips x cores a chip x hours. Paper A counts this way (two a v4 chip)."""
  return chips * chip.cores * seconds / 3600
