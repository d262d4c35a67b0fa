"""Keeps what the compiler writes about each Pallas kernel of a program, and reads figures from it.

With `dump_arguments` in `LIBTPU_INIT_ARGS`, the compiler writes one set of texts for each call of a
kernel. Equal calls have equal texts, which are kept once.
"""

import dataclasses
import gzip
import hashlib
import json
import pathlib
import re
from collections.abc import Mapping

from profiling.compiler_text.bundle_cycles import count_bundles
from profiling.compiler_text.chips import Chip
from profiling.compiler_text.hlo_text import Instruction, kernel_of, parse
from profiling.compiler_text.unit_utilization import unit_utilization

_TEXTS = {
  "allocations": "*-{name}-*-pre-finalize-registers-and-allocations.txt",
  "bundles": "*-{name}-[0-9]*-final_bundles.txt",
  "utilization": "*-{name}-*-final_hlo-static-per-bundle-utilization.txt",
}
DUMPS = "dumps"
"""Name of the folder for the compiler's texts, inside the folder of the process that compiles."""
_INDEX = "kernels.json"
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

  def seconds(self, chip: Chip) -> float:
    """Returns the longer of the times for issuing bundles and for copying.

    The two overlap but for the first and last blocks. Without a grid it is the sum of both.
    """
    copying_seconds = (self.hbm_bytes or 0) / (
      chip.hbm_bytes_per_second * chip.cores_per_device / chip.cores
    )
    issuing_seconds = self.bundles / chip.clock_hz
    combine = max if self.copies_overlap else sum
    return combine((issuing_seconds, copying_seconds))


def dump_arguments(folder: pathlib.Path) -> str:
  """Returns arguments for `LIBTPU_INIT_ARGS`, which has to be set before JAX starts."""
  return (
    f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true --xla_jf_dump_hlo_text=true "
    "--xla_jf_dump_llo_pass_label_regex=final"
  )


def keep(dumps: pathlib.Path, hlo_text: str, folder: pathlib.Path) -> None:
  """Keeps the texts of a program's kernels and deletes all other dumps.

  The compiler writes nothing about a call that equals an earlier one (same kernel, same types and
  memories of operands and results). Such a call gets the texts of the earlier one.

  Args:
    dumps: folder to which the compiler wrote.
    hlo_text: text of the compiled program.
    folder: folder in which the texts are kept.

  Raises:
    FileNotFoundError: the compiler wrote nothing about a kernel.
  """
  computations, _ = parse(hlo_text)
  # The compiler calls a kernel inside a fusion by the fusion's name.
  fused = {
    instruction.attribute("calls")
    for instructions in computations.values()
    for instruction in instructions.values()
  }
  calls = {
    instruction.name: _signature(instructions, instruction, kernel)
    for name, instructions in computations.items()
    if name not in fused
    for instruction in instructions.values()
    if (kernel := kernel_of(computations, instruction)) is not None
  }
  kept_by_signature: dict[str, str] = {}
  for name, signature in calls.items():
    texts = {key: _read_dump(dumps, pattern.format(name=name)) for key, pattern in _TEXTS.items()}
    if None not in texts.values():
      content = json.dumps(texts).encode()
      path = folder / f"kernel_{hashlib.sha256(content).hexdigest()}.json.gz"
      path.write_bytes(gzip.compress(content, compresslevel=5, mtime=0))
      kept_by_signature[signature] = path.name
  if unknown := [name for name, signature in calls.items() if signature not in kept_by_signature]:
    raise FileNotFoundError(f"the compiler wrote nothing about {', '.join(unknown)}")
  kept = {name: kept_by_signature[signature] for name, signature in calls.items()}
  (folder / _INDEX).write_text(json.dumps(kept, indent=1))
  for path in dumps.iterdir():
    path.unlink()


def _signature(
  instructions: Mapping[str, Instruction], call: Instruction, kernel: Instruction
) -> str:
  operands = [instructions[name].type for name in call.operands if name in instructions]
  # The body is the kernel itself, as the compiler received it.
  body = re.search(r'"body":"([^"]*)"', kernel.rest)
  return json.dumps([call.type, operands, body and body[1]])


def _read_dump(dumps: pathlib.Path, pattern: str) -> str | None:
  paths = list(dumps.glob(pattern))
  if not paths:
    return None
  # Without the compiler's name of the call, equal kernels have equal texts.
  return re.sub(r"#\{[\w.]+\}", "#{kernel}", paths[0].read_text())


def read_profiles(folder: pathlib.Path, chip: Chip) -> dict[str, KernelProfile]:
  """Returns profiles by the name of the instruction that calls the kernel; empty if none was kept.

  Args:
    folder: folder to which `keep` wrote.
    chip: chip for which the program was compiled.

  Raises:
    ValueError: a schedule cannot be read.
  """
  index = folder / _INDEX
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
  counts = [count_bundles(bundles_text, core=core) for core in range(chip.cores_per_device)]
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
