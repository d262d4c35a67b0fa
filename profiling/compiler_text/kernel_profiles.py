"""Reads the figures of each Pallas kernel from the texts that `kernel_dumps` keeps."""

import dataclasses
import gzip
import json
import pathlib
import re

from profiling.compiler_text.bundle_cycles import count_bundles
from profiling.compiler_text.bundle_text import parse_schedule
from profiling.compiler_text.chips import Chip
from profiling.compiler_text.kernel_dumps import INDEX
from profiling.compiler_text.unit_utilization import unit_utilization

_VMEM = re.compile(r"space=vmem, size = (0x[0-9a-f]+|\d+)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class KernelProfile:
  """Describes one call of a kernel by the compiler's final schedule.

  Attributes:
    bundles: number of bundles that the busier core issues, one a cycle.
    is_upper_bound: whether fewer bundles may be issued, depending on data.
    utilization: used share of each unit's capacity over all issued bundles, by the compiler's name.
    spills: number of stores and loads of spilled vector registers in all issued bundles.
    vmem_bytes: VMEM reserved on each core.
    hbm_bytes: bytes that all cores of the device copy; None where that is not known for the chip.
    copies_overlap: whether copies overlap with work, which needs a loop over the steps of a grid.
  """

  bundles: int
  is_upper_bound: bool
  utilization: dict[str, float]
  spills: int
  vmem_bytes: int
  hbm_bytes: int | None
  copies_overlap: bool = True

  def issuing_seconds(self, chip: Chip) -> float:
    """Returns the time for issuing all bundles."""
    return self.bundles / chip.clock_hz

  def copying_seconds(self, chip: Chip) -> float:
    """Returns the time for all copies at the device's share of HBM bandwidth; 0 if not known."""
    return (self.hbm_bytes or 0) / (chip.hbm_bytes_per_second * chip.cores_per_device / chip.cores)

  def seconds(self, chip: Chip) -> float:
    """Returns the longer of the times for issuing bundles and for copying.

    The two overlap but for the first and last blocks. Without a grid it is the sum of both.
    """
    combine = max if self.copies_overlap else sum
    return combine((self.issuing_seconds(chip), self.copying_seconds(chip)))


def read_profiles(folder: pathlib.Path, chip: Chip) -> dict[str, KernelProfile]:
  """Returns profiles by the name of the instruction that calls the kernel; empty if none was kept.

  Args:
    folder: folder to which `kernel_dumps.keep` wrote.
    chip: chip for which the program was compiled.

  Raises:
    ValueError: a schedule cannot be read.
  """
  index = folder / INDEX
  if not index.exists():
    return {}
  kept = json.loads(index.read_text())
  profiles = {name: _read_profile(folder / name, chip) for name in set(kept.values())}
  return {instruction: profiles[name] for instruction, name in kept.items()}


def _read_profile(path: pathlib.Path, chip: Chip) -> KernelProfile:
  texts = json.loads(gzip.decompress(path.read_bytes()))
  return profile_kernel(texts["bundles"], texts["utilization"], texts["allocations"], chip=chip)


def profile_kernel(
  bundles_text: str, utilization_text: str, allocations_text: str, *, chip: Chip
) -> KernelProfile:
  """Reads the figures of one kernel from the compiler's texts about it."""
  schedule = parse_schedule(bundles_text)
  counts = [count_bundles(schedule, core=core) for core in range(chip.cores_per_device)]
  busier = max(counts, key=lambda count: count.issue_cycles)
  utilization = unit_utilization(utilization_text, busier)
  return KernelProfile(
    bundles=busier.issue_cycles,
    is_upper_bound=busier.is_upper_bound,
    utilization=utilization,
    # A bundle has at most one fill and one spill.
    spills=round((utilization["VLOAD:FILL"] + utilization["VSTORE:SPILL"]) * busier.issue_cycles),
    vmem_bytes=sum(int(size, 0) for size in _VMEM.findall(allocations_text)),
    hbm_bytes=None
    if chip.copy_granule_bytes is None
    else sum(count.copied_granules for count in counts) * chip.copy_granule_bytes,
    copies_overlap=bool(busier.loops),
  )
