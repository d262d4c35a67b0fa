r"""Compares XLA's program, the kernels and the bound for every op at every published shape.

    python -m profiling.kernels [--kernels=pallas] [--topology=v4:2x2x1] [--images=32] \
        [--only=TEXT] [--json=OUT]
    python -m profiling.kernels --sweep=OP [--only=TEXT] [--write_tiles]

Compiles each op alone for one chip (171 programs, five minutes on two cores, instant the second
time). Cycles are those of one core while all cores of its chip work; they are estimated from the
compiler's schedules, not measured. "backward" is what all gradients cost on top of the forward
pass. The bound is the longer of two times: that of the multiply-adds on the matrix units, and that
of the least bytes over HBM (operands and results once). With --kernels=pallas the ops' kernels are
compiled as well.

"se_residual" is what squeeze-excite and the residual addition cost on top of the convolution before
them. Some of that work is done inside the convolution: both the kernels and XLA sum up the mean in
it, and scale the cotangent in its gradients.

--sweep compiles candidates for the tiles of an op's kernels instead and ranks them by their cycles;
--write_tiles makes the op use the best ones.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags

from nfnet.command_line import refuse_arguments, run_main
from nfnet.errors import UserError
from profiling.compile import command_flags, tile_sweep
from profiling.compile.op_shapes import SUMMARIZED_VARIANTS, named_shapes
from profiling.compile.op_worker import YARDSTICK, OpRequest
from profiling.compile.tile_worker import OPS, sweeps
from profiling.compile.topology import parse_topology
from profiling.compiler_text.chips import Chip
from profiling.estimate.error_bar import error_bar_text, error_bars_json
from profiling.estimate.op_cycles import OpRow, compile_ops, make_rows, summary
from train.report.output import print_and_write, write_json
from train.report.table import format_table


def as_json(rows: Sequence[OpRow], request: OpRequest, versions: dict[str, str]) -> dict[str, Any]:
  """Returns everything that is printed."""
  return {
    "what": "estimated from the compiler's schedules, not measured",
    "unit": "cycles of a core; all cores of the chip work at the same time",
    "topology": request.topology,
    "images_per_chip": request.images,
    "kernels": request.kernels,
    "error_bars": error_bars_json(),
    "versions": versions,
    "rows": [
      {
        **dataclasses.asdict(row),
        "bound_cycles": row.bound_cycles,
      }
      for row in rows
    ],
  }


def as_text(rows: Sequence[OpRow], request: OpRequest) -> str:
  """Returns the tables for a terminal."""
  chip = parse_topology(request.topology).chip
  mode = f", {chip.chip_config}" if chip.chip_config else ""
  table = [
    (
      row.label,
      row.direction,
      _networks(row.calls),
      _number(row.xla_cycles),
      _number(row.bound_cycles),
      "MXU" if row.matrix_cycles > row.memory_cycles else "HBM",
      f"{row.xla_cycles / row.bound_cycles:.2f}" if row.xla_cycles else row.error or "",
      *_kernel_columns(row, chip),
    )
    for row in rows
  ]
  columns = (
    "op", "pass", "in", "XLA", "bound", "by", "XLA / bound", "kernel", "XLA / kernel",
    "MXU VALU VLOAD VSTORE %", "spills", "VMEM KiB", "HBM MB", "HBM us",
  )  # fmt: skip
  return "\n".join(
    [
      f"Cycles of a core on TPU {chip.name}{mode}, {request.images} images a chip. Estimated from "
      "the compiler's schedules, not measured:",
      format_table(table, columns),
      "",
      f"Geometric means over the shapes of {' and '.join(SUMMARIZED_VARIANTS)}:",
      format_table(
        summary(rows), ("op", "shapes", "XLA / bound", "XLA / kernel", "shapes with a kernel")
      ),
      f"{error_bar_text()}.",
    ]
  )


def _networks(calls: Mapping[str, int]) -> str:
  """Returns the families of the networks that call an op."""
  families = {variant.endswith("+") for variant in calls}
  return {frozenset(): "", frozenset({False}): "F", frozenset({True}): "F+"}.get(
    frozenset(families), "F F+"
  )


def _number(cycles: float | None) -> str:
  """Formats a number of cycles as a cell of the table."""
  return "" if cycles is None else f"{cycles:,.0f}"


def _kernel_columns(row: OpRow, chip: Chip) -> tuple[str, ...]:
  """Returns the cells about a row's kernels."""
  if row.kernel_cycles is None:
    # The previous column shows an error of the reference.
    return (row.error or "" if row.xla_cycles else "",) + ("",) * 6
  bundles = sum(kernel.bundles for kernel in row.kernels)
  units = (
    sum(kernel.utilization[unit] * kernel.bundles for kernel in row.kernels) / bundles
    for unit in ("MXU", "VALU", "VLOAD", "VSTORE")
  )
  hbm_bytes = [kernel.hbm_bytes for kernel in row.kernels]
  known = None not in hbm_bytes
  return (
    _number(row.kernel_cycles),
    f"{row.xla_cycles / row.kernel_cycles:.2f}" if row.xla_cycles else "",
    " ".join(f"{100 * unit:.0f}" for unit in units),
    str(sum(kernel.spills for kernel in row.kernels)),
    f"{max(kernel.vmem_bytes for kernel in row.kernels) / 1024:.0f}",
    f"{sum(hbm_bytes) / 1e6:.1f}" if known else "",
    f"{sum(hbm_bytes) / chip.hbm_bytes_per_second * 1e6:.1f}" if known else "",
  )


def _define_flags() -> None:
  """Defines all flags."""
  command_flags.define_topology("v4:2x2x1")
  flags.DEFINE_integer("images", 32, "Images of a chip.", lower_bound=1)
  flags.DEFINE_enum(
    "kernels", "reference", ["reference", "pallas"], "With pallas, compile the kernels as well."
  )
  flags.DEFINE_string("only", "", "Compile only ops with this text in their label.")
  command_flags.define_limits()
  command_flags.define_json()
  flags.DEFINE_enum("sweep", None, OPS, "Op whose tiles to rank.")
  flags.DEFINE_boolean("write_tiles", False, "Use the best tiles from now on.")


def _check_only(only: str, labels: Sequence[str]) -> None:
  """Checks that --only selects something.

  Raises:
    UserError: it does not; all labels have been printed.
  """
  if not any(only in label for label in labels):
    print("\n".join(dict.fromkeys(labels)))
    raise UserError(f"--only={only}: none of the labels has this in it; all of them are printed")


def main(arguments: list[str]) -> None:
  """Compiles, compares and prints."""
  refuse_arguments(arguments)
  values = flags.FLAGS
  chip = parse_topology(values.topology).chip
  images = values.images * chip.cores_per_device // chip.cores
  _check_only(
    values.only,
    [problem.label for problem, _ in sweeps(values.sweep, images)]
    if values.sweep
    else [YARDSTICK, *(shape.label for shape in named_shapes())],
  )
  if values.sweep:
    found = tile_sweep.sweep(
      values.sweep, values.topology, images, values.only, **command_flags.limits()
    )
    print(tile_sweep.as_text(found))
    if values.write_tiles:
      tile_sweep.write_tiles(found, tile_sweep.tiles_path(values.sweep))
    return
  request = OpRequest(
    topology=values.topology, images=images, kernels="reference", only=values.only
  )
  reference, versions = compile_ops(request, **command_flags.limits())
  pallas = None
  if values.kernels == "pallas":
    request = dataclasses.replace(request, kernels="pallas")
    pallas, _ = compile_ops(request, **command_flags.limits())
  rows = make_rows(reference, pallas, chip=chip, images=request.images)
  print_and_write(
    as_text(rows, request),
    lambda: write_json("json", values.json, as_json(rows, request, versions)),
  )


if __name__ == "__main__":
  _define_flags()
  run_main(main)
