"""Parses the final schedule that libtpu writes of one Pallas kernel (`*-final_bundles.txt`).

A bundle is a VLIW instruction: one is issued each cycle, and its slots are instructions of the
core's units. The text lists the bundles in the order of their addresses. The format is that of
libtpu 0.0.42.
"""

import dataclasses
import re
import statistics
from collections.abc import Iterator

_BUNDLE = re.compile(r"^ *(?P<address>0x[0-9a-f]+|0) +(?:[A-Z]+)?: >* *\{", re.M)
_TOKEN = re.compile(r"/\*|\*/|;;|\}")
_INSTRUCTION = re.compile(r"(?:%(?P<result>\S+) = )?(?P<operation>\S+)\s*(?P<operands>.*)", re.S)
_PREDICATE = re.compile(r"\((?P<negated>!?)%(?P<name>\w+)(?:, (?P<otherwise>[^)]*))?\),? ?")
_TARGET = re.compile(r"target = \$region(\d+)")
_REGION = re.compile(r"(?P<kind>Start/End empty|Start|End) region (?P<number>\d+)")
_CONTROL = re.compile(r"(?:[sv]br|scall|sret|inlined_call)(?:\..*)?")
# v4 has a memory (CMEM) between HBM and VMEM, where XLA may put an operand. Copies of CMEM count as
# copies of HBM, because the operand has come over HBM or will go over it.
_COPIES = (
  "dma.hbm_to_vmem",
  "dma.vmem_to_hbm",
  "dma.cmem_to_vmem",
  "dma.vmem_to_cmem",
  # Copies with more than one stride, in any direction.
  "dma.general",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Instruction:
  """Describes one slot of a bundle.

  Attributes:
    result: name of the result without "%", or None.
    operation: name of the operation, for example "sadd.s32".
    operands: operands as text, without a leading predicate; "%" marks names.
    predicate: name of the predicate on which the instruction depends, or None.
    negated: whether the instruction is executed where the predicate is false.
    otherwise: value of the result where the instruction is not executed; None keeps the old value.
    reads_core: whether the instruction loads the number of the core.
  """

  result: str | None
  operation: str
  operands: tuple[str, ...]
  predicate: str | None
  negated: bool
  otherwise: str | None
  reads_core: bool

  @property
  def names(self) -> list[str]:
    """Returns all names that the instruction reads."""
    read = [*self.operands, self.otherwise or "", f"%{self.predicate}" if self.predicate else ""]
    return [name for text in read for name in re.findall(r"%(\w+)", text)]

  @property
  def is_copy(self) -> bool:
    """Returns whether the instruction starts a copy between HBM (or CMEM) and VMEM."""
    return self.operation in _COPIES

  @property
  def copied_size(self) -> str:
    """Returns the operand of a copy that is its size in granules."""
    # The operands are source, size, destination and more. Copies of HBM name a thread first, and a
    # removed predicate leaves an empty operand.
    return [one for one in self.operands if one and not one.startswith("[thread")][1]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Branch:
  """Describes a branch.

  Attributes:
    address: address of the bundle that holds the branch.
    instruction: the branch itself.
    target: address of the bundle to which the branch jumps.
    region: number of the region that begins at the target.
  """

  address: int
  instruction: Instruction
  target: int
  region: int

  @property
  def is_backward(self) -> bool:
    """Returns whether the branch closes a loop."""
    return self.target <= self.address


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule:
  """Holds the bundles of one kernel.

  Attributes:
    bundles: instructions of each bundle, by address.
    branches: branches by their addresses.
    branch_delay_bundles: number of bundles after a branch that are issued even if it is taken;
      None in a text without branches.
  """

  bundles: list[list[Instruction]]
  branches: dict[int, Branch]
  branch_delay_bundles: int | None


def parse_schedule(text: str) -> Schedule:
  """Parses the text of a final schedule.

  Raises:
    ValueError: the text is not a complete schedule, or has control flow that is not understood.
  """
  bundles, regions = _parse_bundles(text)
  branches = {}
  for address, instruction, region in _branches_to_regions(bundles):
    # The exit bundle, to which a core without work jumps, is a region that has no marker.
    if region not in regions.starts and regions.ends.get(region - 1) == len(bundles) - 2:
      regions.starts[region] = len(bundles) - 1
    if region not in regions.starts:
      raise ValueError(f"bundle {address:#x}: the branch's target, region {region}, starts nowhere")
    if address in branches:
      raise ValueError(f"bundle {address:#x}: a second {instruction.operation} is not understood")
    branches[address] = Branch(
      address=address, instruction=instruction, target=regions.starts[region], region=region
    )
  delays = [delay for branch in branches.values() if (delay := _delay(branch, regions)) > 0]
  if branches and not delays:
    raise ValueError("final_bundles_text: no region's end tells how many bundles follow a branch")
  return Schedule(
    bundles=bundles,
    branches=branches,
    branch_delay_bundles=statistics.mode(delays) if delays else None,
  )


@dataclasses.dataclass(frozen=True)
class _Regions:
  """Holds the addresses of the first and last bundles of numbered regions."""

  starts: dict[int, int] = dataclasses.field(default_factory=dict)
  ends: dict[int, int] = dataclasses.field(default_factory=dict)


def _parse_bundles(text: str) -> tuple[list[list[Instruction]], _Regions]:
  heads = list(_BUNDLE.finditer(text))
  if not heads:
    raise ValueError("final_bundles_text contains no bundle")
  bundles, regions = [], _Regions()
  ends = [*(head.start() for head in heads[1:]), len(text)]
  for address, (head, end) in enumerate(zip(heads, ends, strict=True)):
    if int(head["address"], 16) != address:
      raise ValueError(f"final_bundles_text: bundle {head['address']} follows {address - 1:#x}")
    slots, remark = _split_slots(text[head.end() : end], address)
    bundles.append([_parse_instruction(code, comment) for code, comment in slots])
    for marker in _REGION.finditer(remark):
      if marker["kind"] != "End":
        regions.starts[int(marker["number"])] = address
      if marker["kind"] != "Start":
        regions.ends[int(marker["number"])] = address
  if "exit bundle" not in remark:
    raise ValueError(f"final_bundles_text: ends at {len(bundles) - 1:#x} without the exit bundle")
  return bundles, regions


def _branches_to_regions(
  bundles: list[list[Instruction]],
) -> Iterator[tuple[int, Instruction, int]]:
  """Yields the address of each branch, the branch, and the number of its target region."""
  for address, bundle in enumerate(bundles):
    for instruction in bundle:
      if _CONTROL.fullmatch(instruction.operation):
        target = _TARGET.search(" ".join(instruction.operands))
        if instruction.operation != "sbr.rel" or target is None:
          raise ValueError(f"bundle {address:#x}: {instruction.operation} is not understood")
        yield address, instruction, int(target[1])


def _delay(branch: Branch, regions: _Regions) -> int:
  """Returns how many bundles of a branch's own region follow it; negative if unknown."""
  # The compiler numbers the block with the branch, the block that it jumps over, and its target
  # in this order, and a loop's last block immediately before the loop's header.
  own_region = branch.region - (1 if branch.is_backward else 2)
  return regions.ends.get(own_region, -1) - branch.address


def _split_slots(text: str, address: int) -> tuple[list[tuple[str, str]], str]:
  """Splits the text after a bundle's "{" into slots; comments may be nested.

  Returns:
    Pairs (code, comment) of the slots, and the text after the bundle's "}".
  """
  slots, code, comment = [], "", ""
  depth = position = 0
  for token in _TOKEN.finditer(text):
    part = text[position : token.start()]
    code, comment = (code, comment + part) if depth else (code + part, comment)
    position = token.end()
    match token[0]:
      case "/*":
        depth += 1
      case "*/":
        depth -= 1
      case ";;" | "}" as end if not depth:
        slots.append((code.strip(), comment))
        code = comment = ""
        if end == "}":
          return [slot for slot in slots if slot[0]], text[position:]
      case other:
        comment += other
  raise ValueError(f"bundle {address:#x}: has no end")


def _parse_instruction(code: str, comment: str) -> Instruction:
  instruction = _INSTRUCTION.fullmatch(code)
  operation, operands = instruction["operation"], instruction["operands"]
  if operation == "sdivrem.u32":
    operation = "remainder.u32" if "kRem" in comment else "quotient.u32"
  # The predicate comes before the operands or, for instructions on memory, after the address.
  predicate = _PREDICATE.search(operands)
  if predicate:
    operands = operands[: predicate.start()] + operands[predicate.end() :]
  return Instruction(
    result=instruction["result"],
    operation=operation,
    operands=tuple(re.split(r",? (?![^\[]*\])", operands.strip())) if operands.strip() else (),
    predicate=predicate["name"] if predicate else None,
    negated=bool(predicate and predicate["negated"]),
    otherwise=predicate["otherwise"] if predicate else None,
    reads_core="core id" in comment and operation == "sld",
  )
