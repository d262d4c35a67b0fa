"""Finds the instructions of a schedule on which its branches and copies depend.

Of the many thousand instructions of a kernel, a few dozen decide which path a core takes.
"""

import re
from collections.abc import Iterable

from profiling.compiler_text.bundle_text import Instruction, Schedule

_ALLOCATION = re.compile(r"#allocation\w+")
_PHIS = ("sphi", "pphi")


def relevant_instructions(
  schedule: Schedule,
) -> dict[int, tuple[list[Instruction], list[Instruction]]]:
  """Finds the instructions on which a branch or copy depends, and the copies themselves.

  Returns:
    For each bundle's address, its relevant phis and its other relevant instructions, stores last.
  """
  setters: dict[str, list[tuple[int, Instruction]]] = {}
  stores: list[tuple[int, Instruction]] = []
  copies: list[tuple[int, Instruction]] = []
  for address, bundle in enumerate(schedule.bundles):
    for instruction in bundle:
      if instruction.is_copy:
        copies.append((address, instruction))
      elif instruction.operation == "sst":
        stores.append((address, instruction))
      elif instruction.result is not None:
        setters.setdefault(instruction.result, []).append((address, instruction))
  found: dict[int, dict[int, Instruction]] = {}
  pending = [name for branch in schedule.branches.values() for name in branch.instruction.names]
  for address, copy in copies:
    found.setdefault(address, {})[id(copy)] = copy
    # The source, destination, flag and strides of a copy do not matter.
    pending += [copy.predicate] if copy.predicate else []
    pending += re.findall(r"%(\w+)", copy.copied_size)
  seen = set(pending)
  while pending:
    found_now = setters.get(pending.pop(), [])
    for _, load in [pair for pair in found_now if pair[1].operation == "sld"]:
      same = possibly_same(load.operands[0], [store.operands[0] for _, store in stores])
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


def possibly_same(address: str, others: Iterable[str]) -> set[str]:
  """Returns those among other scalar memory addresses that may be equal to `address`.

  Addresses are compared as text. One that contains a register may be any address in its
  allocation; if it names no allocation, it may be any but a spill's.
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
