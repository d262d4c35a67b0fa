"""Executes the scalar instructions of one core on which its branches and copies depend.

A value may be unknown because it depends on data that exist only at run time.
"""

import bisect
import itertools
import re

from profiling.compiler_text.branch_dependencies import possibly_same, relevant_instructions
from profiling.compiler_text.bundle_text import Branch, Instruction, Schedule
from profiling.compiler_text.scalar_arithmetic import WORD, compute, negation


class ScalarCore:
  """Holds the scalar values of one core while it goes through a schedule.

  Attributes:
    copied_granules: size of all copies so far. A copy whose predicate is not known counts.
  """

  def __init__(self, schedule: Schedule, core: int):
    self._core = core
    self._relevant = relevant_instructions(schedule)
    self._relevant_addresses = sorted(self._relevant)
    # For each name the time at which it was set and its value; None is a value that is not known.
    self._clock = 0
    self._values: dict[str, tuple[int, int | None]] = {}
    self._memory: dict[str, int | None] = {}
    # For each predicate that is not known, the instructions that depended on it since it was set.
    self._undecided: dict[str, list[Instruction]] = {}
    self.copied_granules = 0

  def execute(self, start: int, stop: int) -> None:
    """Executes the bundles with addresses from `start` to before `stop`."""
    addresses = self._relevant_addresses
    for i in range(bisect.bisect_left(addresses, start), bisect.bisect_left(addresses, stop)):
      self._clock += 1
      phis, others = self._relevant[addresses[i]]
      # All phis read the values from before the bundle.
      chosen = [max(map(self._recall, phi.names), default=(0, None))[1] for phi in phis]
      for phi, value in zip(phis, chosen, strict=True):
        self._set(phi.result, value)
      for instruction in others:
        self._execute_instruction(instruction)

  def condition(self, instruction: Instruction) -> int | None:
    """Returns 1 if an instruction is executed, 0 if it is not, None if that is not known."""
    if instruction.predicate is None:
      return 1
    value = self._recall(instruction.predicate)[1]
    return negation(value) if instruction.negated else value

  def assume_not_taken(self, branch: Branch) -> None:
    """Enters a region whose predicate depends on data.

    Instructions of the region that the compiler moved to before the branch are executed now.
    """
    self._clock += 1
    predicate = branch.instruction.predicate
    moved = self._undecided.get(predicate, [])
    self._values[predicate] = (self._clock, int(branch.instruction.negated))
    for instruction in list(moved):
      self._execute_instruction(instruction)

  def forget(self, branch: Branch) -> None:
    """Makes the values unknown that a region entered by `assume_not_taken` may have set."""
    self._clock += 1
    predicate = branch.instruction.predicate
    region = range(branch.address + 1, branch.target)
    inside = (
      one for address in region for one in itertools.chain(*self._relevant.get(address, ()))
    )
    for instruction in [*self._undecided.get(predicate, ()), *inside]:
      if instruction.result is not None:
        self._set(instruction.result, None)
      elif "%" not in instruction.operands[0]:
        self._memory[instruction.operands[0]] = None
    self._set(predicate, None)

  def _execute_instruction(self, instruction: Instruction) -> None:
    condition = self.condition(instruction)
    if instruction.is_copy:
      if condition != 0:
        self.copied_granules += self._copied_granules(instruction)
      return
    if condition is None:
      self._undecided.setdefault(instruction.predicate, []).append(instruction)
    operands = instruction.operands
    if instruction.operation == "sst":
      if condition == 0:
        return
      address, value = operands
      if "%" in address:
        for other in possibly_same(address, self._memory):
          self._memory[other] = None
      else:
        self._memory[address] = self._value(value) if condition else None
      return
    if instruction.reads_core:
      value = self._core
    elif instruction.operation == "sld":
      value = self._memory.get(operands[0])
    else:
      value = compute(instruction.operation, [self._value(operand) for operand in operands])
    if not condition:
      if instruction.otherwise is not None:
        otherwise = self._value(instruction.otherwise)
      elif condition == 0:
        return
      else:
        otherwise = self._recall(instruction.result)[1]
      value = otherwise if condition == 0 or value == otherwise else None
    self._set(instruction.result, value)

  def _copied_granules(self, copy: Instruction) -> int:
    size = self._value(copy.copied_size)
    if size is None:
      raise ValueError(f"the size of copy %{copy.result} depends on data")
    return size

  def _recall(self, name: str) -> tuple[int, int | None]:
    return self._values.get(name, (0, None))

  def _value(self, operand: str) -> int | None:
    if operand.startswith("%"):
      return self._recall(operand[1:])[1]
    return int(operand) % WORD if re.fullmatch(r"-?\d+", operand) else None

  def _set(self, name: str, value: int | None) -> None:
    self._values[name] = (self._clock, value)
    self._undecided.pop(name, None)
