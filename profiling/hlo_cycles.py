"""Reads the compiler's own cycle estimates out of optimized HLO text.

Text in, numbers out; nothing here imports JAX. In the text that libtpu 0.0.42 gives for a compiled
program (`compiled.as_text()`), each operation that a core runs has "estimated_cycles" in its
backend_config. It counts once there, however often a loop runs it, so loops are walked with their
trip counts. What has no such figure:

- Collectives: their bytes are given instead, for the caller to time by the slice's links.
- Asynchronous copies and slices between memories (copy-start, slice-start): counted as free, as
  the compiler schedules them behind other operations.
- Pallas kernels (custom calls to "tpu_custom_call"): listed, for the caller to time by their own
  schedule.
- Scalar arithmetic, tuples, parameters: free.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Iterator
from typing import Literal

Kind = Literal["convolution", "elementwise or reduction", "copy or layout", "collective", "kernel"]

COLLECTIVES = (
  "all-gather",
  "all-reduce",
  "all-to-all",
  "collective-permute",
  "reduce-scatter",
)
_LAYOUT = ("bitcast", "copy", "reverse", "transpose", "concatenate", "slice", "pad")
_PALLAS_TARGET = "tpu_custom_call"
_ELEMENT_BYTES = {
  "pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2,
  "f32": 4, "s32": 4, "u32": 4, "f64": 8, "s64": 8, "u64": 8,
}  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Operation:
  """One operation of the program, with how often it runs.

  Attributes:
    name: in the text.
    kind: what it mainly is.
    cycles: of one run on each core, by the compiler's estimate; 0 for collectives and kernels.
    executions: runs in one run of the program.
    source: the path of JAX names that it came from, for example
      "jit(step)/transpose(jvp(stage_3))/while/body/conv_general_dilated".
    result_bytes: of what it computes.
  """

  name: str
  kind: Kind
  cycles: int
  executions: int
  source: str
  result_bytes: int


@dataclasses.dataclass(frozen=True)
class _Instruction:
  name: str
  opcode: str
  type: str
  rest: str

  def attribute(self, name: str) -> str | None:
    """The computation that an attribute names, such as body=%region_1."""
    match = re.search(rf"\b{name}=%([\w.\-]+)", self.rest)
    return match and match[1]

  @property
  def operands(self) -> list[str]:
    """Names up to the parenthesis that closes the operands."""
    return re.findall(r"%([\w.\-]+)", self.rest.split(")", 1)[0])


_Computations = dict[str, dict[str, _Instruction]]


def read_operations(text: str) -> list[Operation]:
  """Every operation that takes time, once, in the order of the text.

  Args:
    text: of an optimized, scheduled HLO module.

  Raises:
    ValueError: it is no such module, or a loop's trip count cannot be read.
  """
  computations, entry = _parse(text)
  executions: collections.Counter[str] = collections.Counter()
  _count_executions(computations, entry, 1, executions)
  # What the compiler added to a loop's body has no source of its own.
  sources = {
    body: _source(instruction)
    for instructions in computations.values()
    for instruction in instructions.values()
    if instruction.opcode == "while" and (body := instruction.attribute("body"))
  }
  return [
    operation
    for computation, times in executions.items()
    for operation in _operations(computations, computation, times, sources.get(computation, ""))
  ]


def _parse(text: str) -> tuple[_Computations, str]:
  computations: _Computations = {}
  entry = None
  current: dict[str, _Instruction] = {}
  for line in text.splitlines():
    if header := re.match(r"(ENTRY )?%([\w.\-]+) \(.*\{$", line):
      current = computations[header[2]] = {}
      if header[1]:
        entry = header[2]
    elif found := re.match(r"\s+(?:ROOT )?%([\w.\-]+) = (.*?) ([a-z][a-z0-9\-]*)\((.*)$", line):
      current[found[1]] = _Instruction(found[1], found[3], found[2], found[4])
  if entry is None:
    raise ValueError("text holds no ENTRY computation: it is no HLO module")
  return computations, entry


def _count_executions(
  computations: _Computations, name: str, times: int, executions: collections.Counter[str]
) -> None:
  executions[name] += times
  for instruction in computations[name].values():
    match instruction.opcode:
      case "while":
        trips = _trip_count(computations, name, instruction)
        body = instruction.attribute("body")
        _count_executions(computations, body, times * trips, executions)
      case "call":
        _count_executions(computations, instruction.attribute("to_apply"), times, executions)
      case "conditional":
        # Which branch runs is not known; the slowest one is an upper bound.
        branches = _branches(instruction)
        slowest = max(branches, key=lambda branch: _cycles_of(computations, branch))
        _count_executions(computations, slowest, times, executions)


def _branches(instruction: _Instruction) -> list[str]:
  if listed := re.search(r"branch_computations=\{([^}]*)\}", instruction.rest):
    return re.findall(r"%([\w.\-]+)", listed[1])
  return [instruction.attribute(f"{side}_computation") for side in ("true", "false")]


def _cycles_of(computations: _Computations, name: str) -> int:
  executions: collections.Counter[str] = collections.Counter()
  _count_executions(computations, name, 1, executions)
  return sum(
    _estimated_cycles(instruction) * times
    for computation, times in executions.items()
    for instruction in computations[computation].values()
  )


def _trip_count(computations: _Computations, where: str, loop: _Instruction) -> int:
  """The bound that the loop's condition compares its counter with, less the counter's start.

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
  computation: dict[str, _Instruction], loop: _Instruction, index: int
) -> int | None:
  start = computation.get(loop.operands[0])
  if start is not None and start.opcode == "tuple":
    start = computation.get(start.operands[index])
  while start is not None and start.opcode in ("copy", "bitcast"):
    start = computation.get(start.operands[0])
  if start is None or start.opcode != "constant":
    return None
  return int(start.rest.split(")")[0])


def _estimated_cycles(instruction: _Instruction) -> int:
  found = re.search(r'"estimated_cycles":"(\d+)"', instruction.rest)
  return int(found[1]) if found else 0


def _source(instruction: _Instruction) -> str:
  found = re.search(r'op_name="([^"]*)"', instruction.rest)
  return found[1] if found else ""


def _operations(
  computations: _Computations, name: str, times: int, default_source: str
) -> Iterator[Operation]:
  for instruction in computations[name].values():
    cycles = _estimated_cycles(instruction)
    called = instruction.attribute("calls")
    collective = instruction.opcode.removesuffix("-start") in COLLECTIVES
    if collective:
      kind: Kind = "collective"
      # A collective may have an estimate of its own; the links decide, which it does not know.
      cycles = 0
    elif f'custom_call_target="{_PALLAS_TARGET}"' in instruction.rest:
      kind = "kernel"
    elif not cycles:
      continue
    elif instruction.opcode == "convolution" or (
      called and _contains_convolution(computations, called)
    ):
      kind = "convolution"
    elif instruction.opcode in _LAYOUT or (called and _only_moves(computations[called])):
      kind = "copy or layout"
    else:
      kind = "elementwise or reduction"
    yield Operation(
      name=instruction.name,
      kind=kind,
      cycles=cycles,
      executions=times,
      source=_source(instruction) or default_source,
      result_bytes=_bytes(instruction),
    )


def _contains_convolution(computations: _Computations, name: str) -> bool:
  return any(
    instruction.opcode in ("convolution", "dot")
    or (
      (called := instruction.attribute("calls")) is not None
      and _contains_convolution(computations, called)
    )
    for instruction in computations[name].values()
  )


def _only_moves(computation: dict[str, _Instruction]) -> bool:
  """Whether a fusion computes nothing and only puts elements elsewhere."""
  moving = (
    *_LAYOUT,
    "broadcast",
    "constant",
    "dynamic-slice",
    "dynamic-update-slice",
    "get-tuple-element",
    "parameter",
    "reshape",
    "tuple",
  )
  return all(instruction.opcode in moving for instruction in computation.values())


def _bytes(instruction: _Instruction) -> int:
  shapes = re.findall(r"\b([a-z]+\d*)\[([\d,]*)\]", instruction.type)
  # An asynchronous start has its operands in the type as well.
  if instruction.opcode.endswith("-start") and len(shapes) > 1:
    shapes = shapes[len(shapes) // 2 :]
  return sum(
    _ELEMENT_BYTES[element] * math.prod(map(int, filter(None, sides.split(","))))
    for element, sides in shapes
    if element in _ELEMENT_BYTES
  )
