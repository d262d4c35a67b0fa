"""Parses optimized HLO text (`compiled.as_text()`, of any backend) and classifies instructions."""

import dataclasses
import functools
import math
import re
from collections.abc import Mapping
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
# A fusion of these instructions only moves elements.
_MOVING = (
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
CONTROL_FLOW = ("call", "conditional", "while")
"""Opcodes of instructions that run other computations of the text."""
# Number of steps from user to user in the search for a source.
_USER_STEPS = 4
_PALLAS_TARGET = "tpu_custom_call"
# Convolutions and matrix products of the libraries for GPUs.
_LIBRARY_CONVOLUTION = re.compile(r'custom_call_target="__(cudnn\$conv|cublas)')
_ELEMENT_BYTES = {
  "pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2,
  "f32": 4, "s32": 4, "u32": 4, "f64": 8, "s64": 8, "u64": 8,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Instruction:
  """Holds one line of a computation: `%name = type opcode(rest`."""

  name: str
  opcode: str
  type: str
  rest: str

  def attribute(self, name: str) -> str | None:
    """Returns the computation that an attribute names, such as body=%region_1."""
    match = re.search(rf"\b{name}=%([\w.\-]+)", self.rest)
    return match and match[1]

  @functools.cached_property
  def operands(self) -> list[str]:
    """Returns the names of the operands."""
    return re.findall(r"%([\w.\-]+)", self.rest.split(")", 1)[0])

  @property
  def own_source(self) -> str:
    """Returns the path of JAX names that the compiler kept for the instruction, or ""."""
    found = re.search(r'op_name="([^"]*)"', self.rest)
    return found[1] if found else ""

  @property
  def result_bytes(self) -> int:
    """Returns the size of the result."""
    shapes = re.findall(r"\b([a-z]+\d*)\[([\d,]*)\]", self.type)
    # The type of an asynchronous start also has its operands.
    if self.opcode.endswith("-start") and len(shapes) > 1:
      shapes = shapes[len(shapes) // 2 :]
    return sum(
      _ELEMENT_BYTES[element] * math.prod(map(int, filter(None, sides.split(","))))
      for element, sides in shapes
      if element in _ELEMENT_BYTES
    )


Computations = Mapping[str, Mapping[str, Instruction]]
"""The instructions of each computation, by name."""


def parse(text: str) -> tuple[Computations, str]:
  """Parses a module into its computations and the name of the one in which the program starts.

  Raises:
    ValueError: the text is not an HLO module.
  """
  computations: dict[str, dict[str, Instruction]] = {}
  entry = None
  current: dict[str, Instruction] = {}
  for line in text.splitlines():
    if header := re.match(r"(ENTRY )?%([\w.\-]+) \(.*\{$", line):
      current = computations[header[2]] = {}
      if header[1]:
        entry = header[2]
    elif found := re.match(r"\s+(?:ROOT )?%([\w.\-]+) = (.*?) ([a-z][a-z0-9\-]*)\((.*)$", line):
      current[found[1]] = Instruction(found[1], found[3], found[2], found[4])
  if entry is None:
    raise ValueError("text holds no ENTRY computation: it is not an HLO module")
  return computations, entry


def source_of(computations: Computations, where: str, instruction: Instruction) -> str:
  """Returns the path of JAX names from which an instruction came, or "".

  Compilers drop the path from some instructions that they rewrite. It is then taken from the
  instructions of a fusion, or from the nearest instruction that uses the result. Of several users,
  one of the forward pass is preferred: the backward pass often uses what the forward pass computes,
  but the forward pass uses nothing of the backward pass.

  Args:
    computations: computations of the program.
    where: name of the instruction's computation.
    instruction: an instruction of that computation.
  """
  if instruction.own_source:
    return instruction.own_source
  if called := instruction.attribute("calls"):
    held = [inner.own_source for inner in computations[called].values() if inner.own_source]
    if held:
      return held[-1]
  names = {instruction.name}
  for _ in range(_USER_STEPS):
    users = [user for user in computations[where].values() if not names.isdisjoint(user.operands)]
    if sources := [user.own_source for user in users if user.own_source]:
      return next((source for source in sources if "transpose(" not in source), sources[0])
    names = {user.name for user in users}
  return ""


def kernel_of(computations: Computations, instruction: Instruction) -> Instruction | None:
  """Returns the call of a Pallas kernel that an instruction is or, as a fusion, contains.

  In a loop, the compiler fuses a kernel with the update of the array that takes the result.
  """
  called = instruction.attribute("calls")
  held = computations[called].values() if called else ()
  target = f'custom_call_target="{_PALLAS_TARGET}"'
  return next((call for call in (instruction, *held) if target in call.rest), None)


def kind_of(computations: Computations, instruction: Instruction) -> Kind:
  """Returns what an instruction mainly does; a fusion does what its instructions do."""
  called = instruction.attribute("calls")
  opcode = instruction.opcode.removesuffix("-start").removesuffix("-done")
  if opcode in COLLECTIVES:
    return "collective"
  if kernel_of(computations, instruction) is not None:
    return "kernel"
  if (
    opcode in ("convolution", "dot")
    or _LIBRARY_CONVOLUTION.search(instruction.rest)
    or (called and _contains_convolution(computations, called))
  ):
    return "convolution"
  if opcode in _LAYOUT or (called and _only_moves(computations[called])):
    return "copy or layout"
  return "elementwise or reduction"


def _contains_convolution(computations: Computations, name: str) -> bool:
  return any(
    instruction.opcode in ("convolution", "dot")
    or (
      (called := instruction.attribute("calls")) is not None
      and _contains_convolution(computations, called)
    )
    for instruction in computations[name].values()
  )


def _only_moves(computation: Mapping[str, Instruction]) -> bool:
  """Returns whether a fusion computes nothing and only moves elements."""
  return all(instruction.opcode in _MOVING for instruction in computation.values())
