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

import collections
import dataclasses
import re
from collections.abc import Iterator, Mapping

from profiling.compiler_text.hlo_text import (
  Computations,
  Instruction,
  Kind,
  kind_of,
  parse,
  source_of,
)


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
    group_devices: number of devices in each group of a collective; None is all devices.
  """

  name: str
  kind: Kind
  cycles: int
  executions: int
  source: str
  result_bytes: int
  opcode: str = ""
  group_devices: int | None = None

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
    ValueError: the text is not such a module, or a loop's trip count cannot be read.
  """
  computations, entry = parse(text)
  executions: collections.Counter[str] = collections.Counter()
  _count_executions(computations, entry, 1, executions)
  # Operations that the compiler added to a loop's body have no source of their own.
  sources = {
    body: instruction.own_source
    for instructions in computations.values()
    for instruction in instructions.values()
    if instruction.opcode == "while" and (body := instruction.attribute("body"))
  }
  elsewhere = {
    instruction.attribute("to_apply")
    for instructions in computations.values()
    for instruction in instructions.values()
    if instruction.opcode == "call-start"
  }
  return [
    operation
    for computation, times in executions.items()
    for operation in _operations(computations, computation, times, sources.get(computation, ""))
    if computation not in elsewhere or operation.kind == "collective"
  ]


def _count_executions(
  computations: Computations, name: str, times: int, executions: collections.Counter[str]
) -> None:
  executions[name] += times
  for instruction in computations[name].values():
    match instruction.opcode:
      case "while":
        trips = _trip_count(computations, name, instruction)
        body = instruction.attribute("body")
        _count_executions(computations, body, times * trips, executions)
      # With "call-start", TPU 7x has its SparseCores sum and copy in the background.
      case "call" | "call-start":
        _count_executions(computations, instruction.attribute("to_apply"), times, executions)
      case "conditional":
        # Which branch runs is not known; the slowest branch is an upper bound.
        branches = _branches(instruction)
        slowest = max(branches, key=lambda branch: _cycles_of(computations, branch))
        _count_executions(computations, slowest, times, executions)


def _branches(instruction: Instruction) -> list[str]:
  if listed := re.search(r"branch_computations=\{([^}]*)\}", instruction.rest):
    return re.findall(r"%([\w.\-]+)", listed[1])
  return [instruction.attribute(f"{side}_computation") for side in ("true", "false")]


def _cycles_of(computations: Computations, name: str) -> int:
  executions: collections.Counter[str] = collections.Counter()
  _count_executions(computations, name, 1, executions)
  return sum(
    _estimated_cycles(instruction) * times
    for computation, times in executions.items()
    for instruction in computations[computation].values()
  )


def _trip_count(computations: Computations, where: str, loop: Instruction) -> int:
  """Returns a loop's trip count: the bound of its condition minus the start of its counter.

  `jax.lax.scan` and `fori_loop` count up by one.
  """
  if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.rest):
    return int(known[1])
  condition = computations[loop.attribute("condition")]
  comparison = list(condition.values())[-1]
  operands = [condition.get(name) for name in comparison.operands]
  if comparison.opcode == "compare" and "direction=LT" in comparison.rest and len(operands) == 2:
    counter, bound = operands
    index = re.search(r"index=(\d+)", counter.rest) if counter else None
    if bound is not None and bound.opcode == "constant" and index is not None:
      start = _start_of_counter(computations[where], loop, int(index[1]))
      if start is not None:
        return max(0, int(bound.rest.split(")")[0]) - start)
  raise ValueError(f"trip count of loop %{loop.name} cannot be read: {comparison.rest[:100]}")


def _start_of_counter(
  computation: Mapping[str, Instruction], loop: Instruction, index: int
) -> int | None:
  start = computation.get(loop.operands[0])
  if start is not None and start.opcode == "tuple":
    start = computation.get(start.operands[index])
  while start is not None and start.opcode in ("copy", "bitcast"):
    start = computation.get(start.operands[0])
  if start is None or start.opcode != "constant":
    return None
  return int(start.rest.split(")")[0])


def _estimated_cycles(instruction: Instruction) -> int:
  found = re.search(r'"estimated_cycles":"(\d+)"', instruction.rest)
  return int(found[1]) if found else 0


def _operations(
  computations: Computations, name: str, times: int, default_source: str
) -> Iterator[Operation]:
  for instruction in computations[name].values():
    cycles = _estimated_cycles(instruction)
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
      result_bytes=instruction.result_bytes,
      opcode=instruction.opcode.removesuffix("-start"),
      group_devices=_group_devices(instruction) if kind == "collective" else None,
    )


def _group_devices(collective: Instruction) -> int | None:
  """Reads replica_groups={{0,1},{2,3}} or [groups,devices]<=[...]; {} is all devices."""
  if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", collective.rest):
    return listed[1].count(",") + 1
  if iota := re.search(r"replica_groups=\[\d+,(\d+)\]", collective.rest):
    return int(iota[1])
  return None
