"""Reads the compiler's own cycle estimates out of optimized HLO text.

In the text that libtpu 0.0.42 gives for a compiled program (`compiled.as_text()`), each operation
that a core runs has "estimated_cycles" in its backend_config. The figure is for one run, however
often a loop runs the operation, so loops are walked with their trip counts. Some operations have no
such figure:

- Collectives are returned with their bytes, for the caller to time by the slice's links.
- Asynchronous copies and slices between memories (copy-start, slice-start, and what TPU 7x leaves
  to its SparseCores) count as free, because the compiler schedules them behind other operations.
- Pallas kernels (custom calls to "tpu_custom_call") are returned with 0 cycles, for the caller to
  time by their own schedules.
- Scalar arithmetic, tuples and parameters count as free.
"""

import dataclasses
from collections.abc import Iterator

from profiling.compiler_text.control_flow import (
  background_computation,
  count_executions,
  estimated_cycles,
  find_dones,
)
from profiling.compiler_text.device_groups import Groups, device_groups
from profiling.compiler_text.hlo_text import Computations, Kind, kind_of, parse, source_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class Operation:
  """Describes one operation of the program and how often it runs.

  Attributes:
    name: name in the text.
    kind: what the operation mainly does.
    cycles: the compiler's estimate for one run on each core; 0 for collectives and kernels.
    executions: number of runs in one run of the program.
    source: path of JAX names from which the operation came, for example
      "jit(step)/transpose(jvp(stage_3))/while/body/conv_general_dilated".
    result_bytes: size of the result.
    opcode: opcode in the text, without "-start".
    groups: devices between which a collective exchanges data, see
      `profiling.compiler_text.device_groups`.
  """

  name: str
  kind: Kind
  cycles: int
  executions: int
  source: str
  result_bytes: int
  opcode: str = ""
  groups: Groups = ()

  @property
  def group_devices(self) -> int | None:
    """Returns the number of devices in each group; None is all devices."""
    return len(self.groups[0]) if self.groups else None

  @property
  def whole_bytes(self) -> int:
    """Returns the size of a collective's arrays before scattering or after gathering them."""
    parts = (self.group_devices or 1) if self.opcode == "reduce-scatter" else 1
    return self.result_bytes * parts


def read_operations(text: str) -> list[Operation]:
  """Returns every operation that takes time, once, in the order of the text.

  Args:
    text: text of an optimized, scheduled HLO module.

  Raises:
    ValueError: the text is not such a module, a loop's trip count cannot be read, or a collective
      starts and is not done in the same computation.
  """
  computations, entry = parse(text)
  executions = count_executions(computations, entry)
  # Operations that the compiler added to a loop's body have no source of their own.
  sources = {
    body: instruction.own_source
    for instructions in computations.values()
    for instruction in instructions.values()
    if instruction.opcode == "while" and (body := instruction.attribute("body"))
  }
  elsewhere = {
    background_computation(instruction)
    for instructions in computations.values()
    for instruction in instructions.values()
  }
  return [
    operation
    for computation, times in executions.items()
    for operation in _operations(computations, computation, times, sources.get(computation, ""))
    if computation not in elsewhere or operation.kind == "collective"
  ]


def _operations(
  computations: Computations, name: str, times: int, default_source: str
) -> Iterator[Operation]:
  dones = find_dones(computations, name)
  for instruction in computations[name].values():
    cycles = estimated_cycles(instruction)
    if instruction.opcode.endswith("-done"):
      continue
    kind = kind_of(computations, instruction)
    if kind == "collective":
      # The compiler's estimate, if there is one, ignores the links, which decide the time.
      cycles = 0
    elif kind != "kernel" and not cycles:
      continue
    yield Operation(
      name=instruction.name,
      kind=kind,
      cycles=cycles,
      executions=times,
      source=source_of(computations, name, instruction) or default_source,
      # The type of a start also has operands and what the compiler keeps about the transfer.
      result_bytes=dones.get(instruction.name, instruction).result_bytes,
      opcode=instruction.opcode.removesuffix("-start"),
      groups=device_groups(instruction) if kind == "collective" else (),
    )
