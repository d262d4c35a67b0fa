"""Which tile of each of an op's kernels takes the fewest cycles.

`python -m profiling.kernels --sweep=OP` runs it. The tiles that it finds are data beside the op.
"""

import dataclasses
import json
import pathlib
from typing import Any

import kernels
from nfnet.errors import UserError
from profiling.compile.cache import run_worker
from profiling.compile.tile_worker import Op, TileRequest, sweeps
from profiling.compile.topology import parse_topology
from profiling.compiler_text.kernel_dumps import KernelProfile, read_profiles
from train.report.table import format_table

CANDIDATES = 12
"""Of each kernel; the rest has smaller blocks, or a convolution's input is activated more often."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidate:
  """A tile and what the compiler made of it.

  Attributes:
    tile: fields of `Tile`.
    vmem_bytes: of its blocks, by the op's `Blocks.vmem_bytes`.
    profile: of the kernel; None where the compiler refused.
    cycles: of a core; infinite where the compiler refused.
  """

  tile: dict[str, Any]
  vmem_bytes: int
  profile: KernelProfile | None
  cycles: float


def sweep(
  op: Op, topology: str, images: int, only: str, **limits: Any
) -> dict[tuple[str, str], list[Candidate]]:
  """Candidates of each kernel and direction, the best first.

  Args:
    op: with tiles.
    topology: name of a slice.
    images: of a device.
    only: substring of the kernels' names.
    **limits: see `run_worker`.

  Raises:
    UserError: no kernel has this in its name, or as `run_worker`.
  """
  wanted = [(name, direction) for name, direction in sweeps(op, images) if only in name]
  if not wanted:
    raise UserError(f"--only={only}: no kernel of {op} has this in its name")
  chip = parse_topology(topology).chip
  found = {}
  for i, (name, direction) in enumerate(wanted):
    request = TileRequest(
      topology=topology, images=images, op=op, name=name, direction=direction, count=CANDIDATES
    )
    folder, _ = run_worker(
      "profiling.compile.tile_worker",
      dataclasses.asdict(request),
      what=f"kernel {i + 1} of {len(wanted)}, {name}, {direction}",
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
          cycles=profile.seconds(chip) * chip.clock_hz if profile else float("inf"),
        )
      )
    found[name, direction] = sorted(candidates, key=lambda one: one.cycles)
  return found


def as_text(found: dict[tuple[str, str], list[Candidate]]) -> str:
  """A table of all candidates."""
  rows = [
    (
      name if i == 0 else "",
      direction if i == 0 else "",
      _tile_text(candidate.tile),
      f"{candidate.cycles:,.0f}" if candidate.profile else "does not compile",
      str(candidate.profile.spills) if candidate.profile else "",
      f"{candidate.vmem_bytes / 2**20:.1f}",
      f"{candidate.profile.vmem_bytes / 2**20:.1f}" if candidate.profile else "",
      f"{candidate.profile.hbm_bytes / 1e6:.1f}" if candidate.profile else "",
    )
    for (name, direction), candidates in found.items()
    for i, candidate in enumerate(candidates)
  ]
  columns = (
    "kernel", "pass", "tile", "cycles", "spills", "blocks MiB", "VMEM MiB", "HBM MB",
  )  # fmt: skip
  return format_table(rows, columns)


def _tile_text(tile: dict[str, Any]) -> str:
  return ", ".join(f"{field} {value}" for field, value in tile.items())


def tiles_path(op: Op) -> pathlib.Path:
  """The file with the tiles of an op."""
  return pathlib.Path(kernels.__file__).parent / op / "tiles.json"


def write_tiles(found: dict[tuple[str, str], list[Candidate]], path: pathlib.Path) -> None:
  """Puts the best tiles into a file, in place of those of the same kernels."""
  entries = {(entry["name"], entry["direction"]): entry for entry in json.loads(path.read_text())}
  for (name, direction), candidates in found.items():
    if candidates and candidates[0].profile:
      best = candidates[0]
      entries[name, direction] = {"name": name, "direction": direction, "tile": best.tile}
  lines = (json.dumps(entries[key]) for key in sorted(entries))
  path.write_text("[\n" + ",\n".join(lines) + "\n]\n")
