"""Finds the tile with which each of an op's kernels takes the fewest cycles.

`python -m profiling.kernels --sweep=OP` runs it. The best tiles are stored beside the op.
"""

import dataclasses
import json
import pathlib
from typing import Any

import kernels
from profiling.compile.cache import run_worker
from profiling.compile.tile_worker import Key, Op, TileRequest, sweeps
from profiling.compile.topology import parse_topology
from profiling.compiler_text.kernel_profiles import KernelProfile, read_profiles
from train.report.table import format_table

CANDIDATES = 12
"""Number of tiles to compile for each kernel. The others have smaller blocks, or activate a
convolution's input more often."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidate:
  """A tile and what the compiler made of it.

  Attributes:
    tile: fields of the op's `Tile`.
    vmem_bytes: VMEM of its blocks, by the op's `Blocks.vmem_bytes`.
    profile: profile of the kernel; None if the compiler refused the tile.
    cycles: cycles per core, with those of adding up the parts of a result afterwards; infinite if
      the compiler refused the tile.
  """

  tile: dict[str, Any]
  vmem_bytes: int
  profile: KernelProfile | None
  cycles: float


def sweep(
  op: Op,
  topology: str,
  images: int,
  only: str,
  *,
  candidates_per_kernel: int = CANDIDATES,
  **limits: Any,
) -> dict[Key, list[Candidate]]:
  """Returns the candidates for each problem and direction, the best first.

  Args:
    op: op with tiles.
    topology: name of a slice.
    images: number of images per device.
    only: substring of the problems' labels.
    candidates_per_kernel: number of tiles to compile for each kernel.
    **limits: see `run_worker`.

  Raises:
    UserError: see `run_worker`.
  """
  wanted = [(problem, pass_) for problem, pass_ in sweeps(op, images) if only in problem.label]
  chip = parse_topology(topology).chip
  found = {}
  for i, (problem, direction) in enumerate(wanted):
    request = TileRequest(
      topology=topology,
      images=images,
      op=op,
      problem=dataclasses.asdict(problem),
      direction=direction,
      count=candidates_per_kernel,
    )
    folder, _ = run_worker(
      "profiling.compile.tile_worker",
      dataclasses.asdict(request),
      what=f"kernel {i + 1} of {len(wanted)}, {problem.label}, {direction}",
      dumps=True,
      **limits,
    )
    entries = json.loads((folder / "result.json").read_text())["programs"]
    candidates = []
    for j, entry in enumerate(entries):
      profile = None
      if "error" not in entry:
        (profile,) = read_profiles(folder / str(j), chip).values()
      candidates.append(
        Candidate(
          tile=entry["tile"],
          vmem_bytes=entry["vmem_bytes"],
          profile=profile,
          cycles=(
            profile.seconds(chip) + entry.get("added_hbm_bytes", 0) / chip.hbm_bytes_per_second
          )
          * chip.clock_hz
          if profile
          else float("inf"),
        )
      )
    found[problem, direction] = sorted(candidates, key=lambda candidate: candidate.cycles)
  return found


def as_text(found: dict[Key, list[Candidate]]) -> str:
  """Returns a table of all candidates."""
  rows = [
    (
      problem.label if i == 0 else "",
      direction if i == 0 else "",
      _tile_text(candidate.tile),
      f"{candidate.cycles:,.0f}" if candidate.profile else "does not compile",
      str(candidate.profile.spills) if candidate.profile else "",
      f"{candidate.vmem_bytes / 2**20:.1f}",
      f"{candidate.profile.vmem_bytes / 2**20:.1f}" if candidate.profile else "",
      f"{candidate.profile.hbm_bytes / 1e6:.1f}" if candidate.profile else "",
    )
    for (problem, direction), candidates in found.items()
    for i, candidate in enumerate(candidates)
  ]
  columns = (
    "kernel", "pass", "tile", "cycles", "spills", "blocks MiB", "VMEM MiB", "HBM MB",
  )  # fmt: skip
  return format_table(rows, columns)


def _tile_text(tile: dict[str, Any]) -> str:
  return ", ".join(f"{field} {value}" for field, value in tile.items())


def tiles_path(op: Op) -> pathlib.Path:
  """Returns the path of the file with an op's tiles."""
  return pathlib.Path(kernels.__file__).parent / op / "tiles.json"


def write_tiles(found: dict[Key, list[Candidate]], path: pathlib.Path) -> None:
  """Writes the best tiles into a file, replacing those for the same problems and directions."""
  best = [
    {"problem": dataclasses.asdict(problem), "direction": direction, "tile": candidates[0].tile}
    for (problem, direction), candidates in found.items()
    if candidates and candidates[0].profile
  ]
  (problem_class,) = {type(problem) for problem, _ in found}
  known = json.loads(path.read_text())
  for entry in known:
    # Fields that were added after a sweep have their default.
    entry["problem"] = dataclasses.asdict(problem_class(**entry["problem"]))
  entries = {_sort_key(entry): entry for entry in [*known, *best]}
  lines = (json.dumps(entries[key]) for key in sorted(entries))
  path.write_text("[\n" + ",\n".join(lines) + "\n]\n")


def _sort_key(entry: dict[str, Any]) -> tuple[Any, ...]:
  return *entry["problem"].values(), entry["direction"]
