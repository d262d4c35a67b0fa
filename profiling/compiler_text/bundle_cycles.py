"""Issue cycles of one Pallas kernel, read off libtpu's final schedule of it.

`*-final_bundles.txt` lists the bundles (VLIW instructions, one issued a cycle) of a kernel in the
order of their addresses. How often each is issued is not a constant in the text: loop bounds may
depend on the core, predicates on the iteration, and both go through registers and spills. So
`count_bundles` follows the path of one core: it computes the scalar values that branches depend on
and counts the bundles on the way.

- A loop ends when its exit test says so. Mosaic runs a whole grid as one loop with a few iterations
  more than the grid has steps (it starts copying in before the first, and copies out after the
  last); the kernel's body is a predicated region of that loop.
- With megacore the two cores run one text. Each has half of the steps of a parallel axis, from an
  offset that it computes from its number; of an odd axis half rounded up, so one step is done
  twice. Without a parallel axis the second core jumps over everything.
- A predicated region (`pl.when`) counts for the iterations in which it is entered. Where that
  depends on data, it counts each time: an upper bound, and `Region.assumed` says so.
- Bundles right behind a branch (one on v4, four on v5p) are issued whether it is taken or not.
- A loop whose number of iterations depends on data is an error.

Cycles in which nothing is issued are not in it: waits for copies, barriers and stalls. What the
core copies between HBM (or CMEM) and VMEM is counted on the same path, so that the caller can see
whether the copies take longer than the bundles.
"""

import bisect
import dataclasses
import itertools
import operator
import re
import statistics
from collections.abc import Callable, Iterable, Mapping

# A grid of a million steps takes a few million; what takes more was misread.
MAX_BRANCHES = 10_000_000

_BUNDLE = re.compile(r"^ *(?P<address>0x[0-9a-f]+|0) +(?:[A-Z]+)?: >* *\{", re.M)
_TOKEN = re.compile(r"/\*|\*/|;;|\}")
_INSTRUCTION = re.compile(r"(?:%(?P<result>\S+) = )?(?P<operation>\S+)\s*(?P<operands>.*)", re.S)
_PREDICATE = re.compile(r"\((?P<negated>!?)%(?P<name>\w+)(?:, (?P<otherwise>[^)]*))?\),? ?")
_TARGET = re.compile(r"target = \$region(\d+)")
_REGION = re.compile(r"(?P<kind>Start/End empty|Start|End) region (?P<number>\d+)")
_CONTROL = re.compile(r"(?:[sv]br|scall|sret|inlined_call)(?:\..*)?")
_ALLOCATION = re.compile(r"#allocation\w+")
_WORD = 2**32
# v4 has a memory between the two, where XLA may put an operand. Its copies count as those of HBM,
# over which the operand has come or will go.
_COPIES = (
  "dma.hbm_to_vmem",
  "dma.vmem_to_hbm",
  "dma.cmem_to_vmem",
  "dma.vmem_to_cmem",
  # With more than one stride, whatever the direction.
  "dma.general",
)
_PHIS = ("sphi", "pphi")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loop:
  """A loop of the schedule.

  Attributes:
    first_bundle: address of the loop's first bundle.
    last_bundle: of the last one that is issued in each iteration.
    entries: times the loop is entered.
    iterations: in all entries together.
  """

  first_bundle: int
  last_bundle: int
  entries: int
  iterations: int

  @property
  def bundles(self) -> int:
    """Bundles from first to last, those of regions and loops inside it included."""
    return self.last_bundle - self.first_bundle + 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Region:
  """Bundles that a branch jumps over or not.

  Attributes:
    first_bundle: address of the first bundle that is jumped over.
    last_bundle: of the last one.
    reached: times that the branch is issued.
    entered: times that it is not taken.
    assumed: its predicate depends on data somewhere, and there the region was entered.
  """

  first_bundle: int
  last_bundle: int
  reached: int
  entered: int
  assumed: bool

  @property
  def bundles(self) -> int:
    """Bundles from first to last."""
    return self.last_bundle - self.first_bundle + 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class BundleCount:
  """What one core issues in one run of a kernel.

  Attributes:
    issues: for each bundle of the text, how often it is issued.
    loops: in the order of their last bundles; an inner one comes before the outer.
    regions: in the order of their branches.
    branch_delay_bundles: bundles behind a branch that are issued also when it is taken; None in a
      text without branches.
    copied_granules: that the core copies from HBM to VMEM and back, in units of the chip's
      `copy_granule_bytes`. A copy whose predicate depends on data counts each time.
  """

  issues: tuple[int, ...]
  loops: tuple[Loop, ...]
  regions: tuple[Region, ...]
  branch_delay_bundles: int | None
  copied_granules: int

  @property
  def issue_cycles(self) -> int:
    """Bundles issued, each of which takes a cycle."""
    return sum(self.issues)

  @property
  def bundles(self) -> int:
    """Bundles in the text."""
    return len(self.issues)

  @property
  def is_upper_bound(self) -> bool:
    """Whether a region was counted that depends on data."""
    return any(region.assumed for region in self.regions)


def count_bundles(final_bundles_text: str, *, core: int = 0) -> BundleCount:
  """Follows one core through a schedule.

  Args:
    final_bundles_text: a `*-final_bundles.txt` of one kernel.
    core: number of the core in its chip. It makes no difference if the grid has a parallel axis;
      if it has none, the second core does nothing.

  Raises:
    ValueError: the text is no such schedule, has control flow that is not understood, or a loop
      whose trip count cannot be read.
  """
  schedule = _parse(final_bundles_text)
  return _Path(schedule, core).follow()


def unit_utilization(utilization_text: str, count: BundleCount) -> dict[str, float]:
  """Use of each unit over all issued bundles, as shares of its capacity.

  Args:
    utilization_text: the `*-final_hlo-static-per-bundle-utilization.txt` of the same kernel.
    count: from `count_bundles`.

  Returns:
    Shares of 0 to 1, by the names and in the order of the text: MXU, XLU, VALU, VPOP, EUP, VLOAD,
    VLOAD:FILL, VSTORE, VSTORE:SPILL, SALU. The capacity is instructions a cycle; fills and spills
    are loads and stores too, and counted among them. MXU is units in use, which is not the share of
    the peak: 0.839 for a matrix product at 0.918 of it.

  Raises:
    ValueError: the text is no such table, or not of this schedule.
  """
  capacities, rows = parse_utilization(utilization_text)
  if len(rows) != count.bundles:
    raise ValueError(f"utilization_text: {len(rows)} bundles, and the schedule has {count.bundles}")
  if not count.issue_cycles:
    raise ValueError("count: nothing is issued")
  used = [sum(map(operator.mul, column, count.issues)) for column in zip(*rows, strict=True)]
  return {
    unit: total / (capacity * count.issue_cycles)
    for (unit, capacity), total in zip(capacities.items(), used, strict=True)
  }


def parse_utilization(utilization_text: str) -> tuple[dict[str, int], list[tuple[int, ...]]]:
  """Capacities in instructions a cycle by unit, and for each bundle the instructions of each unit.

  Raises:
    ValueError: the text is no such table.
  """
  lines = [line.strip() for line in utilization_text.splitlines() if line.strip()]
  # "CAPACTIY" is the compiler's spelling.
  if len(lines) < 4 or "CAPAC" not in lines[0] or "UTILIZATION" not in lines[3]:
    raise ValueError("utilization_text: no tables of capacity and utilization")
  units = [name.strip() for name in lines[1].split(",")]
  try:
    capacity, *rows = [tuple(map(int, line.split())) for line in (lines[2], *lines[4:])]
  except ValueError as error:
    raise ValueError(f"utilization_text: {error}") from None
  for row in (capacity, *rows):
    if len(row) != len(units):
      raise ValueError(f"utilization_text: {len(row)} figures for {len(units)} units: {row}")
  return dict(zip(units, capacity, strict=True)), rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Instruction:
  """One slot of a bundle.

  Attributes:
    result: name without "%", or None.
    operation: for example "sadd.s32".
    operands: as text, without a leading predicate; "%" marks names.
    predicate: name of the predicate that it depends on, or None.
    negated: it is executed where the predicate is false.
    otherwise: value of the result where it is not executed; None leaves the old one.
    reads_core: it loads the number of the core.
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
    """All names that it reads."""
    read = [*self.operands, self.otherwise or "", f"%{self.predicate}" if self.predicate else ""]
    return [name for text in read for name in re.findall(r"%(\w+)", text)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Branch:
  address: int
  instruction: _Instruction
  target: int

  @property
  def is_backward(self) -> bool:
    return self.target <= self.address


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Schedule:
  bundles: list[list[_Instruction]]
  branches: dict[int, _Branch]
  branch_delay_bundles: int | None


def _parse(text: str) -> _Schedule:
  starts = list(_BUNDLE.finditer(text))
  if not starts:
    raise ValueError("final_bundles_text: no line of it is a bundle")
  bundles = []
  region_starts: dict[int, int] = {}
  region_ends: dict[int, int] = {}
  for i, start in enumerate(starts):
    if int(start["address"], 16) != i:
      raise ValueError(f"final_bundles_text: bundle {start['address']} follows {i - 1:#x}")
    end = starts[i + 1].start() if i + 1 < len(starts) else len(text)
    slots, remark = _split_slots(text[start.end() : end], address=i)
    bundles.append([_parse_instruction(slot, comment) for slot, comment in slots])
    for marker in _REGION.finditer(remark):
      if marker["kind"] != "End":
        region_starts[int(marker["number"])] = i
      if marker["kind"] != "Start":
        region_ends[int(marker["number"])] = i

  if "exit bundle" not in remark:
    raise ValueError(f"final_bundles_text: ends at {len(bundles) - 1:#x} without the exit bundle")

  branches, delays = {}, []
  for i, bundle in enumerate(bundles):
    for instruction in bundle:
      if not _CONTROL.fullmatch(instruction.operation):
        continue
      target = _TARGET.search(" ".join(instruction.operands))
      if instruction.operation != "sbr.rel" or target is None or i in branches:
        raise ValueError(f"bundle {i:#x}: {instruction.operation} is not understood")
      number = int(target[1])
      # The exit bundle, to which a core without work jumps, is a region without a marker.
      if number not in region_starts and region_ends.get(number - 1) == len(bundles) - 2:
        region_starts[number] = len(bundles) - 1
      if number not in region_starts:
        raise ValueError(f"bundle {i:#x}: the branch's target, region {number}, starts nowhere")
      branches[i] = _Branch(address=i, instruction=instruction, target=region_starts[number])
      # The compiler numbers the block with the branch, what it jumps over, and its target in this
      # order, and a loop's last block just before the header.
      own_region = number - (1 if branches[i].is_backward else 2)
      if region_ends.get(own_region, -1) > i:
        delays.append(region_ends[own_region] - i)
  if branches and not delays:
    raise ValueError("final_bundles_text: no region's end tells how many bundles follow a branch")
  return _Schedule(
    bundles=bundles,
    branches=branches,
    branch_delay_bundles=statistics.mode(delays) if delays else None,
  )


def _split_slots(text: str, address: int) -> tuple[list[tuple[str, str]], str]:
  """Splits what follows a bundle's "{".

  Returns:
    (code, comment) of each slot, and the text behind the bundle's "}". Comments nest.
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


def _parse_instruction(code: str, comment: str) -> _Instruction:
  instruction = _INSTRUCTION.fullmatch(code)
  operation, operands = instruction["operation"], instruction["operands"]
  if operation == "sdivrem.u32":
    operation = "remainder.u32" if "kRem" in comment else "quotient.u32"
  # Either before the operands or, for instructions on memory, behind the address.
  predicate = _PREDICATE.search(operands)
  if predicate:
    operands = operands[: predicate.start()] + operands[predicate.end() :]
  return _Instruction(
    result=instruction["result"],
    operation=operation,
    operands=tuple(re.split(r",? (?![^\[]*\])", operands.strip())) if operands.strip() else (),
    predicate=predicate["name"] if predicate else None,
    negated=bool(predicate and predicate["negated"]),
    otherwise=predicate["otherwise"] if predicate else None,
    reads_core="core id" in comment and operation == "sld",
  )


def _signed(x: int) -> int:
  return x - _WORD if x >= _WORD // 2 else x


def _either(a: int | None, b: int | None) -> int | None:
  return 1 if a or b else None if a is None or b is None else 0


def _negation(a: int | None) -> int | None:
  return None if a is None else int(not a)


def _both(a: int | None, b: int | None) -> int | None:
  return _negation(_either(_negation(a), _negation(b)))


_ARITHMETIC: Mapping[str, Callable[..., int]] = {
  "smov": lambda a: a,
  "sadd": operator.add,
  "ssub": operator.sub,
  "smul": operator.mul,
  "smulhi": lambda a, b: a * b >> 32,
  "quotient": lambda a, b: a // b if b else _WORD - 1,
  "remainder": lambda a, b: a % b if b else a,
  "sand": operator.and_,
  "sor": operator.or_,
  "sxor": operator.xor,
  "sshll": lambda a, b: a << b if b < 32 else 0,
  "sshrl": lambda a, b: a >> b if b < 32 else 0,
  "sshra": lambda a, b: _signed(a) >> min(b, 31),
}
_SIGNED_ARITHMETIC = {"smin": min, "smax": max}
_COMPARISONS = {name: getattr(operator, name) for name in ("eq", "ne", "lt", "le", "gt", "ge")}
# Predicates may be known although one of the two is not.
_LOGIC: Mapping[str, Callable[..., int | None]] = {
  "por": _either,
  "pand": _both,
  "pnand": lambda a, b: _negation(_both(a, b)),
  "pnor": lambda a, b: _negation(_either(a, b)),
  "pxor": lambda a, b: None if a is None or b is None else a ^ b,
  "pneg": _negation,
  "pmov": lambda a: a,
}


def _compute(operation: str, values: list[int | None]) -> int | None:
  """Result of an instruction as a number below 2**32; None if it is not known."""
  name, *kinds = operation.split(".")
  if name in _LOGIC:
    return _LOGIC[name](*values)
  if name == "scalar_select":
    predicate, on_true, on_false = values
    if predicate is None:
      return on_true if on_true == on_false else None
    return on_true if predicate else on_false
  if None in values:
    return None
  if name == "spop":  # takes what an earlier instruction left in a queue
    return values[0]
  if name == "scmp" and kinds[1][0] in "su" and kinds[0] in _COMPARISONS:
    numbers = map(_signed, values) if kinds[1][0] == "s" else values
    return int(_COMPARISONS[kinds[0]](*numbers))
  if name in _ARITHMETIC and (not kinds or kinds[0][0] in "su"):
    return _ARITHMETIC[name](*values) % _WORD
  if name in _SIGNED_ARITHMETIC and kinds and kinds[0][0] in "su":
    numbers = map(_signed, values) if kinds[0][0] == "s" else values
    return _SIGNED_ARITHMETIC[name](*numbers) % _WORD
  return None


class _Path:
  """The path of one core; an instance is used once."""

  def __init__(self, schedule: _Schedule, core: int):
    self.schedule = schedule
    self.core = core
    self.delay = schedule.branch_delay_bundles or 0
    self.branch_addresses = sorted(schedule.branches)
    self.relevant = _relevant_instructions(schedule)
    self.relevant_addresses = sorted(self.relevant)
    # The core's state. By name: when it was set, and to what; None is a value that is not known.
    self.clock = 0
    self.values: dict[str, tuple[int, int | None]] = {}
    self.memory: dict[str, int | None] = {}
    # By predicate that is not known: what depends on it since it was set.
    self.undecided: dict[str, list[_Instruction]] = {}
    self.assumed_regions: list[_Branch] = []
    # What is counted. Issues are kept as differences from the bundle before.
    self.differences = [0] * (len(schedule.bundles) + 1)
    self.reached = dict.fromkeys(schedule.branches, 0)
    self.taken = dict.fromkeys(schedule.branches, 0)
    self.assumed: set[int] = set()
    self.copied_granules = 0

  def follow(self) -> BundleCount:
    position, branches = 0, 0
    while position < len(self.schedule.bundles):
      while self.assumed_regions and position >= self.assumed_regions[-1].target:
        self._forget(self.assumed_regions.pop())
      index = bisect.bisect_left(self.branch_addresses, position)
      stop = min(
        [len(self.schedule.bundles)]
        + [address + 1 for address in self.branch_addresses[index : index + 1]]
        + [region.target for region in self.assumed_regions]
      )
      self._issue(position, stop)
      branch = self.schedule.branches.get(stop - 1)
      position = self._position_after(branch) if branch else stop
      branches += branch is not None
      if branches > MAX_BRANCHES:
        raise ValueError(f"more than {MAX_BRANCHES} branches: a loop's exit test was misread")
    return BundleCount(
      issues=tuple(itertools.accumulate(self.differences[:-1])),
      loops=tuple(
        Loop(
          first_bundle=branch.target,
          last_bundle=at + self.delay,
          entries=self.reached[at] - self.taken[at],
          iterations=self.reached[at],
        )
        for at, branch in sorted(self.schedule.branches.items())
        if branch.is_backward
      ),
      regions=tuple(
        Region(
          first_bundle=at + 1 + self.delay,
          last_bundle=branch.target - 1,
          reached=self.reached[at],
          entered=self.reached[at] - self.taken[at],
          assumed=at in self.assumed,
        )
        for at, branch in sorted(self.schedule.branches.items())
        if not branch.is_backward
      ),
      branch_delay_bundles=self.schedule.branch_delay_bundles,
      copied_granules=self.copied_granules,
    )

  def _issue(self, start: int, stop: int) -> None:
    self._execute(start, stop)
    self.differences[start] += 1
    self.differences[stop] -= 1

  def _position_after(self, branch: _Branch) -> int:
    """Address where it goes on after a branch was issued."""
    at = branch.address
    self.reached[at] += 1
    taken = self._condition(branch.instruction)
    if taken is None:
      if branch.is_backward:
        raise ValueError(
          f"the trip count of the loop at bundles {branch.target:#x} to {at:#x} cannot be read:"
          f" its exit test %{branch.instruction.predicate} depends on data"
        )
      self.assumed.add(at)
      self._assume_not_taken(branch)
      self.assumed_regions.append(branch)
    if not taken:
      return at + 1
    self.taken[at] += 1
    behind = at + 1 + self.delay
    if any(address in self.schedule.branches for address in range(at + 1, behind)):
      raise ValueError(f"bundle {at:#x}: another branch right behind this one is not understood")
    if at < branch.target < behind:
      raise ValueError(f"bundle {at:#x}: the branch's target is issued anyway")
    self._issue(at + 1, behind)
    return branch.target

  def _execute(self, start: int, stop: int) -> None:
    """Computes what branches depend on in the bundles from start to before stop."""
    addresses = self.relevant_addresses
    for i in range(bisect.bisect_left(addresses, start), bisect.bisect_left(addresses, stop)):
      self.clock += 1
      phis, others = self.relevant[addresses[i]]
      # All phis read what was there before the bundle.
      chosen = [max(map(self._recall, phi.names), default=(0, None))[1] for phi in phis]
      for phi, value in zip(phis, chosen, strict=True):
        self._set(phi.result, value)
      for instruction in others:
        self._execute_instruction(instruction)

  def _execute_instruction(self, instruction: _Instruction) -> None:
    condition = self._condition(instruction)
    if instruction.operation in _COPIES:
      if condition != 0:
        self.copied_granules += self._copied_granules(instruction)
      return
    if condition is None:
      self.undecided.setdefault(instruction.predicate, []).append(instruction)
    operands = instruction.operands
    if instruction.operation == "sst":
      if condition == 0:
        return
      address, value = operands
      if "%" in address:
        for other in _possibly_same(address, self.memory):
          self.memory[other] = None
      else:
        self.memory[address] = self._value(value) if condition else None
      return
    if instruction.reads_core:
      value = self.core
    elif instruction.operation == "sld":
      value = self.memory.get(operands[0])
    else:
      value = _compute(instruction.operation, [self._value(operand) for operand in operands])
    if not condition:
      if instruction.otherwise is not None:
        otherwise = self._value(instruction.otherwise)
      elif condition == 0:
        return
      else:
        otherwise = self._recall(instruction.result)[1]
      value = otherwise if condition == 0 or value == otherwise else None
    self._set(instruction.result, value)

  def _copied_granules(self, copy: _Instruction) -> int:
    size = self._value(_copied_size(copy))
    if size is None:
      raise ValueError(f"the size of copy %{copy.result} depends on data")
    return size

  def _condition(self, instruction: _Instruction) -> int | None:
    """1 if the instruction is executed, 0 if it is not, None if that is not known."""
    if instruction.predicate is None:
      return 1
    value = self._recall(instruction.predicate)[1]
    return _negation(value) if instruction.negated else value

  def _recall(self, name: str) -> tuple[int, int | None]:
    return self.values.get(name, (0, None))

  def _value(self, operand: str) -> int | None:
    if operand.startswith("%"):
      return self._recall(operand[1:])[1]
    return int(operand) % _WORD if re.fullmatch(r"-?\d+", operand) else None

  def _set(self, name: str, value: int | None) -> None:
    self.values[name] = (self.clock, value)
    self.undecided.pop(name, None)

  def _assume_not_taken(self, branch: _Branch) -> None:
    """Enters a region by data; parts of it that were moved to before the branch are done now."""
    self.clock += 1
    predicate = branch.instruction.predicate
    moved = self.undecided.get(predicate, [])
    self.values[predicate] = (self.clock, int(branch.instruction.negated))
    for instruction in list(moved):
      self._execute_instruction(instruction)

  def _forget(self, branch: _Branch) -> None:
    """Makes unknown what the region of a branch by data may have set."""
    self.clock += 1
    predicate = branch.instruction.predicate
    region = range(branch.address + 1, branch.target)
    inside = (one for address in region for one in itertools.chain(*self.relevant.get(address, ())))
    for instruction in [*self.undecided.get(predicate, ()), *inside]:
      if instruction.result is not None:
        self._set(instruction.result, None)
      elif "%" not in instruction.operands[0]:
        self.memory[instruction.operands[0]] = None
    self._set(predicate, None)


def _relevant_instructions(
  schedule: _Schedule,
) -> dict[int, tuple[list[_Instruction], list[_Instruction]]]:
  """Instructions that a branch or copy depends on, by bundle: phis, all others with stores last.

  Of many thousand instructions of a kernel's body, some dozens decide where it goes.
  """
  setters: dict[str, list[tuple[int, _Instruction]]] = {}
  stores: list[tuple[int, _Instruction]] = []
  copies: list[tuple[int, _Instruction]] = []
  for address, bundle in enumerate(schedule.bundles):
    for instruction in bundle:
      if instruction.operation in _COPIES:
        copies.append((address, instruction))
      elif instruction.operation == "sst":
        stores.append((address, instruction))
      elif instruction.result is not None:
        setters.setdefault(instruction.result, []).append((address, instruction))
  found: dict[int, dict[int, _Instruction]] = {}
  pending = [name for branch in schedule.branches.values() for name in branch.instruction.names]
  for address, copy in copies:
    found.setdefault(address, {})[id(copy)] = copy
    # Where it copies from and to, its flag and its strides do not matter.
    pending += [copy.predicate] if copy.predicate else []
    pending += re.findall(r"%(\w+)", _copied_size(copy))
  seen = set(pending)
  while pending:
    found_now = setters.get(pending.pop(), [])
    for _, load in [pair for pair in found_now if pair[1].operation == "sld"]:
      same = _possibly_same(load.operands[0], [store.operands[0] for _, store in stores])
      found_now = found_now + [pair for pair in stores if pair[1].operands[0] in same]
    for address, instruction in found_now:
      found.setdefault(address, {})[id(instruction)] = instruction
      fresh = set(instruction.names) - seen
      seen |= fresh
      pending.extend(fresh)
  result = {}
  for address, instructions in found.items():
    phis = [one for one in instructions.values() if one.operation in _PHIS]
    others = [one for one in instructions.values() if one.operation not in _PHIS]
    result[address] = phis, sorted(others, key=lambda one: one.operation == "sst")
  return result


def _copied_size(copy: _Instruction) -> str:
  """The operand that is a copy's size in granules: source, size, destination, ..."""
  # HBM's copies name a thread first; where the predicate was, there is an empty operand.
  return [one for one in copy.operands if one and not one.startswith("[thread")][1]


def _possibly_same(address: str, others: Iterable[str]) -> set[str]:
  """Those of other scalar memory addresses that may be this one.

  Addresses are compared as text; one with a register may be any in its allocation, or any that is
  no spill if it names no allocation.
  """
  allocations = set(_ALLOCATION.findall(address))

  def may_be(other: str) -> bool:
    if "%" not in address + other:
      return address == other
    both = allocations, set(_ALLOCATION.findall(other))
    if all(both):
      return bool(both[0] & both[1])
    return "_spill" not in address + other

  return {other for other in others if may_be(other)}
