"""Lists the figures of each TPU generation.

TPU v4 is from Jouppi et al., arXiv 2304.01433, table 4; TPU v3 from the same table and from the
appendix of arXiv 2102.06171; the later ones from "System architecture" of each in Google's Cloud
TPU documentation (docs.cloud.google.com/tpu/docs/v5e, v5p, v6e, tpu7x), which gives peak, memory
and links but no clock. For these, the clock is the peak divided by the operations that the matrix
units perform in a cycle; that a 256 x 256 unit takes two operands a cycle follows from the
compiler's cycles for a large product. A core is a TensorCore.
"""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
  """Describes the chip of one generation.

  Attributes:
    name: name in topologies, for example "v4".
    device_kind: name that JAX gives its devices, for example "TPU v4".
    cores: number of TensorCores.
    clock_hz: clock of the cores.
    peak_flops: bfloat16 operations per second of all cores; a multiply-add is two operations.
    hbm_bytes: size of the high-bandwidth memory.
    hbm_bytes_per_second: bandwidth of the high-bandwidth memory.
    links: number of links to neighbors that each chip of a full torus has.
    link_bytes_per_second: bandwidth of one link in one direction.
    chip_config: JAX's name of the mode in which one device is a whole chip; None where the compiler
      knows only one mode.
    cores_per_device: number of cores of a device in that mode.
    copy_granule_bytes: unit in which the compiler's schedules count copies between HBM and VMEM;
      None where no schedule has been read.
  """

  name: str
  device_kind: str
  cores: int
  clock_hz: float
  peak_flops: float
  hbm_bytes: int
  hbm_bytes_per_second: float
  links: int
  link_bytes_per_second: float
  chip_config: str | None
  cores_per_device: int
  copy_granule_bytes: int | None = None

  @property
  def hbm_bytes_per_device(self) -> int:
    """Returns a device's share of the chip's memory."""
    return self.hbm_bytes * self.cores_per_device // self.cores


CHIPS: dict[str, Chip] = {
  chip.name: chip
  for chip in (
    Chip(
      name="v4",
      device_kind="TPU v4",
      cores=2,
      clock_hz=1.05e9,
      peak_flops=275e12,
      hbm_bytes=32 * 2**30,
      hbm_bytes_per_second=1.2e12,
      links=6,
      link_bytes_per_second=50e9,
      # Without this, the compiler uses split mode, in which a chip is two devices of one core each.
      chip_config="megacore",
      cores_per_device=2,
      copy_granule_bytes=512,
    ),
    Chip(
      name="v3",
      device_kind="TPU v3",
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
    Chip(
      name="v5e",
      device_kind="TPU v5 lite",
      cores=1,
      clock_hz=1.5e9,
      peak_flops=197e12,
      hbm_bytes=16 * 2**30,
      hbm_bytes_per_second=8.19e11,
      links=4,
      link_bytes_per_second=50e9,
      chip_config=None,
      cores_per_device=1,
    ),
    Chip(
      name="v5p",
      device_kind="TPU v5",
      cores=2,
      clock_hz=1.75e9,
      peak_flops=459e12,
      hbm_bytes=95 * 2**30,
      hbm_bytes_per_second=2.765e12,
      links=6,
      link_bytes_per_second=100e9,
      chip_config="megacore",
      cores_per_device=2,
      copy_granule_bytes=32,
    ),
    Chip(
      name="v6e",
      device_kind="TPU v6 lite",
      cores=1,
      clock_hz=1.75e9,
      peak_flops=918e12,
      hbm_bytes=32 * 2**30,
      hbm_bytes_per_second=1.638e12,
      links=4,
      link_bytes_per_second=100e9,
      chip_config=None,
      cores_per_device=1,
    ),
    Chip(
      name="tpu7x",
      device_kind="TPU7x",
      cores=2,
      clock_hz=2.2e9,
      peak_flops=2307e12,
      hbm_bytes=192 * 2**30,
      hbm_bytes_per_second=7.38e12,
      links=6,
      link_bytes_per_second=100e9,
      chip_config=None,
      cores_per_device=1,
    ),
  )
}
"""All generations by name."""


def chip_of_device_kind(device_kind: str) -> Chip | None:
  """Returns the generation of a JAX device, or None if it is not a known TPU."""
  return next((chip for chip in CHIPS.values() if chip.device_kind == device_kind), None)
