"""Compares each op's cycles in XLA's program, in its own kernels, and at the chip's bound.

`python -m profiling.kernels` prints them.
"""

import dataclasses
import gzip
import json
import pathlib
from collections.abc import Mapping, Sequence
from statistics import geometric_mean
from typing import Any

from profiling.compile import matmul_kernel
from profiling.compile.cache import run_worker
from profiling.compile.op_shapes import (
  SUMMARIZED_VARIANTS,
  ConvShape,
  FullyConnectedShape,
  SqueezeExciteShape,
  StemShape,
  UpdateShape,
  named_shapes,
)
from profiling.compile.op_worker import YARDSTICK, OpRequest
from profiling.compile.topology import parse_topology
from profiling.compiler_text.chips import Chip
from profiling.compiler_text.hlo_cycles import read_operations
from profiling.compiler_text.kernel_profiles import KernelProfile, read_profiles


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompiledOp:
  """A program that was compiled for one chip, with the compiler's figures.

  Attributes:
    operation_cycles: cycles of XLA's operations.
    kernels: profiles of the Pallas kernels that it calls.
    argument_bytes: size of its arguments in HBM.
    output_bytes: size of its results in HBM.
    error: the compiler's error message; all other fields are then empty.
  """

  operation_cycles: int = 0
  kernels: tuple[KernelProfile, ...] = ()
  argument_bytes: int = 0
  output_bytes: int = 0
  error: str | None = None

  @property
  def outer_bytes(self) -> int:
    """Returns the size of arguments and results."""
    return self.argument_bytes + self.output_bytes

  def cycles(self, chip: Chip) -> float:
    """Returns the sum of the cycles of operations and kernels."""
    in_kernels = sum(kernel.seconds(chip) for kernel in self.kernels)
    return self.operation_cycles + in_kernels * chip.clock_hz


@dataclasses.dataclass(frozen=True, kw_only=True)
class OpRow:
  """One op at one shape in one direction.

  Attributes:
    label: op and shape.
    direction: "forward", "backward", "update" or "yardstick".
    calls: number of calls in one training step, by network.
    matrix_cycles: least cycles per core, if the matrix units are busy all the time.
    memory_cycles: least cycles per core, if the chip's HBM is busy all the time.
    xla_cycles: cycles of the reference; None if it did not compile.
    kernel_cycles: cycles of the kernel; None if there is none.
    kernels: profiles of all kernels that enter `kernel_cycles`, including those subtracted: of the
      forward pass in a backward pass, of the preceding convolution in squeeze-excite.
    error: the compiler's error message.
  """

  label: str
  direction: str
  calls: dict[str, int]
  matrix_cycles: float
  memory_cycles: float
  xla_cycles: float | None
  kernel_cycles: float | None = None
  kernels: tuple[KernelProfile, ...] = ()
  error: str | None = None

  @property
  def bound_cycles(self) -> float:
    """Returns the least cycles that the chip could need."""
    return max(self.matrix_cycles, self.memory_cycles)


_Compiled = Mapping[tuple[str, str], CompiledOp]
"""Programs by label and direction."""

_Pair = tuple[CompiledOp, CompiledOp | None]
"""One program compiled by XLA alone and, if requested, the same program with kernels."""


def compile_ops(request: OpRequest, **options: Any) -> tuple[_Compiled, dict[str, str]]:
  """Compiles all ops of a request.

  Args:
    request: ops to compile.
    **options: see `profiling.compile.cache.run_worker`.

  Returns:
    The programs, and the versions of the compiling packages.

  Raises:
    UserError: see `run_worker`.
  """
  folder, versions = run_worker(
    "profiling.compile.op_worker",
    dataclasses.asdict(request),
    what=f"compiling ops for {request.topology}",
    dumps=True,
    **options,
  )
  chip = parse_topology(request.topology).chip
  entries = json.loads((folder / "result.json").read_text())["programs"]
  compiled = {}
  for i, entry in enumerate(entries):
    key = entry["label"], entry["direction"]
    compiled[key] = (
      CompiledOp(error=entry["error"])
      if "error" in entry
      else _read(folder / str(i), entry["argument_bytes"], entry["output_bytes"], chip)
    )
  return compiled, versions


def _read(folder: pathlib.Path, argument_bytes: int, output_bytes: int, chip: Chip) -> CompiledOp:
  """Returns what the compiler says about the program that a folder holds."""
  text = gzip.decompress((folder / "program.hlo.gz").read_bytes()).decode()
  operations = read_operations(text)
  profiles = read_profiles(folder, chip)
  return CompiledOp(
    operation_cycles=sum(one.cycles * one.executions for one in operations),
    kernels=tuple(
      profiles[one.name]
      for one in operations
      if one.kind == "kernel"
      for _ in range(one.executions)
    ),
    argument_bytes=argument_bytes,
    output_bytes=output_bytes,
  )


def make_rows(
  reference: _Compiled, pallas: _Compiled | None, *, chip: Chip, images: int
) -> list[OpRow]:
  """Returns the rows of the table.

  Args:
    reference: programs of the references.
    pallas: programs with kernels, if they were requested.
    chip: chip that the programs were compiled for.
    images: number of images per device.
  """
  rows = []
  for (label, direction), program in reference.items():
    if (label, direction) == (YARDSTICK, "yardstick"):
      by_xla = reference[YARDSTICK, "yardstick by XLA"]
      macs = matmul_kernel.SIZE**3
      rows.append(_row(label, direction, {}, macs, (by_xla, program), chip))
  pallas = pallas or {}
  for shape, calls in named_shapes().items():
    label = shape.label
    if not any(shape.label == compiled for compiled, _ in reference):
      continue
    programs = {
      direction: (reference[label, direction], pallas.get((label, direction)))
      for compiled, direction in reference
      if compiled == label
    }
    match shape:
      case UpdateShape():
        rows.append(_row(label, "update", calls, 0, programs["update"], chip))
      case ConvShape() | StemShape() | FullyConnectedShape():
        forward, both = programs["forward"], programs["both"]
        rows.append(_row(label, "forward", calls, shape.macs * images, forward, chip))
        macs = shape.backward_macs * images
        # These are operands, cotangent and gradients; the result of the forward pass is left out.
        least_bytes = both[0].outer_bytes - forward[0].output_bytes
        rows.append(
          _row(label, "backward", calls, macs, both, chip, less=[forward], least_bytes=least_bytes)
        )
      case SqueezeExciteShape():
        forward, both = programs["forward"], programs["both"]
        conv, conv_both = programs["convolution forward"], programs["convolution both"]
        # Shortcut and gate come on top of the convolution. The forward pass also reads the branch
        # again and writes the result. The backward pass reads the branch instead of the shortcut,
        # and the cotangent once more.
        wide_bytes = conv[0].output_bytes
        least_bytes = forward[0].outer_bytes - conv[0].outer_bytes + 2 * wide_bytes
        macs = shape.macs * images
        rows.append(
          _row(label, "forward", calls, macs, forward, chip, less=[conv], least_bytes=least_bytes)
        )
        least_bytes = both[0].outer_bytes - conv_both[0].outer_bytes + wide_bytes
        rows.append(
          _row(
            label,
            "backward",
            calls,
            shape.backward_macs * images,
            both,
            chip,
            less=[forward, conv_both],
            plus=[conv],
            least_bytes=least_bytes,
          )
        )
  return rows


def _row(
  label: str,
  direction: str,
  calls: dict[str, int],
  macs: int,
  program: _Pair,
  chip: Chip,
  *,
  plus: Sequence[_Pair] = (),
  less: Sequence[_Pair] = (),
  least_bytes: int | None = None,
) -> OpRow:
  """Returns the row of a program, whose cycles are program + `plus` - `less`.

  The least bytes are the program's arguments and results, unless they are given.
  """
  if least_bytes is None:
    least_bytes = program[0].outer_bytes
  by_xla, with_kernels = zip(program, *plus, *less, strict=True)
  signs = [1] * (1 + len(plus)) + [-1] * len(less)
  xla_cycles = _sum(by_xla, signs, chip)
  kernel_cycles = _sum(with_kernels, signs, chip)
  if kernel_cycles is not None:
    # Where a reference ran instead, there is no kernel.
    kernels = sum(sign * len(one.kernels) for one, sign in zip(with_kernels, signs, strict=True))
    kernel_cycles = kernel_cycles if kernels > 0 else None
  errors = [one.error for one in (*by_xla, *with_kernels) if one and one.error]
  device_share = chip.cores_per_device / chip.cores
  return OpRow(
    label=label,
    direction=direction,
    calls=calls,
    matrix_cycles=2 * macs / (chip.peak_flops * device_share) * chip.clock_hz,
    memory_cycles=least_bytes / (chip.hbm_bytes_per_second * device_share) * chip.clock_hz,
    xla_cycles=xla_cycles,
    kernel_cycles=kernel_cycles,
    kernels=() if kernel_cycles is None else program[1].kernels,
    error=errors[0] if errors else None,
  )


def _sum(programs: Sequence[CompiledOp | None], signs: Sequence[int], chip: Chip) -> float | None:
  """Returns the signed sum of cycles; None where a program is missing or did not compile."""
  if any(one is None or one.error for one in programs):
    return None
  return sum(sign * one.cycles(chip) for one, sign in zip(programs, signs, strict=True))


def summary(rows: Sequence[OpRow]) -> list[tuple[str, str, str, str, str]]:
  """Returns a line for each op and direction of F0 and F7+.

  Each line has the number of shapes, the geometric means of XLA's cycles over the bound and over
  the kernel's, and how many shapes have a kernel.
  """
  lines = []
  for op in ("conv", "se_residual", "fully_connected", "sgd_agc"):
    for direction in ("forward", "backward", "update"):
      chosen = [
        row
        for row in rows
        if row.label.startswith(op)
        and row.direction == direction
        and row.xla_cycles
        and any(variant in row.calls for variant in SUMMARIZED_VARIANTS)
      ]
      if not chosen:
        continue
      with_kernel = [row for row in chosen if row.kernel_cycles]
      lines.append(
        (
          f"{op}, {direction}",
          str(len(chosen)),
          f"{geometric_mean([row.xla_cycles / row.bound_cycles for row in chosen]):.2f}",
          f"{geometric_mean([row.xla_cycles / row.kernel_cycles for row in with_kernel]):.2f}"
          if with_kernel
          else "",
          f"{len(with_kernel)} of {len(chosen)}",
        )
      )
  return lines
