"""Optimized HLO text as instructions, and what an instruction mainly is.

Text in, values out; nothing here imports JAX. The text is that of `compiled.as_text()`, for any
backend.
"""

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
# What a fusion may hold besides and still compute nothing.
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
# Instructions that run others, which have instructions of their own in the text.
CONTROL_FLOW = ("call", "conditional", "while")
# How far to look for a user that says where it came from.
_USER_STEPS = 4
_PALLAS_TARGET = "tpu_custom_call"
# Convolutions and matrix products of libraries that GPUs have.
_LIBRARY_CONVOLUTION = re.compile(r'custom_call_target="__(cudnn\$conv|cublas)')
_ELEMENT_BYTES = {
  "pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2,
  "f32": 4, "s32": 4, "u32": 4, "f64": 8, "s64": 8, "u64": 8,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line of a computation: `%name = type opcode(rest`."""

  name: str
  opcode: str
  type: str
  rest: str

  def attribute(self, name: str) -> str | None:
    """The computation that an attribute names, such as body=%region_1."""
    match = re.search(rf"\b{name}=%([\w.\-]+)", self.rest)
    return match and match[1]

  @functools.cached_property
  def operands(self) -> list[str]:
    """Names up to the parenthesis that closes the operands."""
    return re.findall(r"%([\w.\-]+)", self.rest.split(")", 1)[0])

  @property
  def own_source(self) -> str:
    """The path of JAX names that the compiler left at it, or ""."""
    found = re.search(r'op_name="([^"]*)"', self.rest)
    return found[1] if found else ""

  @property
  def result_bytes(self) -> int:
    """Of what it computes."""
    shapes = re.findall(r"\b([a-z]+\d*)\[([\d,]*)\]", self.type)
    # An asynchronous start has its operands in the type as well.
    if self.opcode.endswith("-start") and len(shapes) > 1:
      shapes = shapes[len(shapes) // 2 :]
    return sum(
      _ELEMENT_BYTES[element] * math.prod(map(int, filter(None, sides.split(","))))
      for element, sides in shapes
      if element in _ELEMENT_BYTES
    )


Computations = Mapping[str, Mapping[str, Instruction]]
"""Instructions by name, by the name of their computation."""


def parse(text: str) -> tuple[Computations, str]:
  """All computations, and the name of the one where the program starts.

  Raises:
    ValueError: it is no HLO module.
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
    raise ValueError("text holds no ENTRY computation: it is no HLO module")
  return computations, entry


def source_of(computations: Computations, where: str, instruction: Instruction) -> str:
  """The path of JAX names that an instruction came from, or "".

  Compilers drop it from some of what they rewrite: it is then taken from what a fusion holds, or
  from the nearest instruction that uses the result. Of several users one of the forward pass
  counts: what the forward pass computes is often used by the backward pass as well, but not the
  other way round.

  Args:
    computations: of the program.
    where: name of the instruction's computation.
    instruction: in it.
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
  """The call of a Pallas kernel that an instruction is or, being a fusion, holds.

  In a loop, the compiler fuses a kernel with the update of the array that its result goes into.
  """
  called = instruction.attribute("calls")
  held = computations[called].values() if called else ()
  target = f'custom_call_target="{_PALLAS_TARGET}"'
  return next((call for call in (instruction, *held) if target in call.rest), None)


def kind_of(computations: Computations, instruction: Instruction) -> Kind:
  """What an instruction mainly is; a fusion is what it holds."""
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
  """Whether a fusion computes nothing and only puts elements elsewhere."""
  return all(instruction.opcode in _MOVING for instruction in computation.values())
