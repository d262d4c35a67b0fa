"""Which tile of each convolution kernel takes the fewest cycles.

`python -m profiling.kernels --sweep=scaled_ws_conv` runs it. The tiles that it finds are data
beside the op.
"""

import dataclasses
import json
import pathlib
from typing import Any

from kernels.scaled_ws_conv.tile import CHOSEN
from nfnet.errors import UserError
from profiling.compilation import run_worker
from profiling.kernel_dumps import KernelProfile, read_profiles
from profiling.tile_worker import TileRequest, tiled_kernels
from profiling.topology import parse_topology
from train.progress import format_table

CANDIDATES = 12
"""Of each kernel; the rest has smaller blocks or activates the input more often."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidate:
  """A tile and what the compiler made of it.

  Attributes:
    tile: fields of `Tile`.
    vmem_bytes: of its blocks, by `Blocks.vmem_bytes`.
    profile: of the kernel; None where the compiler refused.
    cycles: of a core; infinite where the compiler refused.
  """

  tile: dict[str, Any]
  vmem_bytes: int
  profile: KernelProfile | None
  cycles: float


def sweep(
  topology: str, images: int, only: str, **limits: Any
) -> dict[tuple[str, str], list[Candidate]]:
  """Candidates of each kernel and direction, the best first.

  Args:
    topology: name of a slice.
    images: of a device.
    only: substring of the kernels' names.
    **limits: see `run_worker`.

  Raises:
    UserError: no kernel has this in its name, or as `run_worker`.
  """
  names = [name for name in tiled_kernels(images) if only in name]
  if not names:
    raise UserError(f"--only={only}: no kernel has this in its name")
  chip = parse_topology(topology).chip
  found = {}
  for i, name in enumerate(names):
    for direction in ("forward", "backward"):
      request = TileRequest(
        topology=topology, images=images, name=name, direction=direction, count=CANDIDATES
      )
      folder, _ = run_worker(
        "profiling.tile_worker",
        request,
        what=f"kernel {i + 1} of {len(names)}, {name}, {direction}",
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
  split = "channels" if tile["split_channels"] else "positions"
  return (
    f"{tile['images']} images x {tile['rows']} rows x {tile['channels']} channels, "
    f"{tile['columns']} columns at a time, {tile['cores']} cores share {split}"
  )


def write_tiles(found: dict[tuple[str, str], list[Candidate]], path: pathlib.Path = CHOSEN) -> None:
  """Puts the best tiles into the file beside the op, in place of those of the same kernels."""
  entries = {(entry["name"], entry["direction"]): entry for entry in json.loads(path.read_text())}
  for (name, direction), candidates in found.items():
    if candidates and candidates[0].profile:
      best = candidates[0]
      entries[name, direction] = {"name": name, "direction": direction, "tile": best.tile}
  lines = (json.dumps(entries[key]) for key in sorted(entries))
  path.write_text("[\n" + ",\n".join(lines) + "\n]\n")
