"""Says what the instructions of an optimized HLO program run, and how often.

An instruction may run another computation: a loop, a call, a branch. It may also start collectives
that end at another instruction, its done, while the program goes on.
"""

import collections
import re
from collections.abc import Mapping

from profiling.compiler_text.hlo_text import Computations, Instruction, kind_of


def estimated_cycles(instruction: Instruction) -> int:
  """Returns the compiler's estimate for one run of an instruction, or 0 if there is none."""
  found = re.search(r'"estimated_cycles":"(\d+)"', instruction.rest)
  return int(found[1]) if found else 0


def called_computation(
  computations: Computations, where: str, instruction: Instruction
) -> tuple[str, int] | None:
  """Returns the computation that an instruction runs on the cores, and how often; None if none.

  Which branch of a conditional runs is not known; the slowest branch is an upper bound.

  Args:
    computations: computations of the program.
    where: name of the instruction's computation.
    instruction: an instruction of that computation.

  Raises:
    ValueError: a loop's trip count cannot be read.
  """
  match instruction.opcode:
    case "while":
      return instruction.attribute("body"), _trip_count(computations, where, instruction)
    case "call":
      return instruction.attribute("to_apply"), 1
    case "conditional":
      return max(_branches(instruction), key=lambda branch: _cycles_of(computations, branch)), 1
  return None


def background_computation(instruction: Instruction) -> str | None:
  """Returns the computation that an instruction starts beside the cores' work; None if none.

  With "call-start", TPU 7x has its SparseCores sum and copy.
  """
  match instruction.opcode:
    case "call-start":
      return instruction.attribute("to_apply")
    case "async-start":
      return instruction.attribute("calls")
  return None


def count_executions(computations: Computations, entry: str) -> collections.Counter[str]:
  """Returns how often each computation runs in one run of `entry`, also those beside the cores.

  Raises:
    ValueError: a loop's trip count cannot be read.
  """
  executions: collections.Counter[str] = collections.Counter()
  _count_executions(computations, entry, 1, executions)
  return executions


def started_collectives(computations: Computations, instruction: Instruction) -> list[str]:
  """Returns the names of the collectives that an instruction starts.

  The instruction is the collective itself, such as all-gather-start, or it starts a computation
  that holds collectives. Asynchronous copies are none.

  Raises:
    ValueError: a collective would run several times between one start and its done.
  """
  if not instruction.opcode.endswith("-start"):
    return []
  if background := background_computation(instruction):
    executions = count_executions(computations, background)
    held = {
      collective.name: times
      for name, times in executions.items()
      for collective in computations[name].values()
      if kind_of(computations, collective) == "collective"
    }
    if repeated := [name for name, times in held.items() if times != 1]:
      raise ValueError(f"%{instruction.name} starts collective %{repeated[0]} several times")
    return list(held)
  return [instruction.name] if kind_of(computations, instruction) == "collective" else []


def find_dones(computations: Computations, where: str) -> dict[str, Instruction]:
  """Returns the done of each instruction of a computation that starts collectives, by its name.

  Raises:
    ValueError: a start has no done in the computation.
  """
  dones = {
    instruction.operands[0]: instruction
    for instruction in computations[where].values()
    if instruction.opcode.endswith("-done")
  }
  starts = [
    instruction.name
    for instruction in computations[where].values()
    if started_collectives(computations, instruction)
  ]
  if lost := [name for name in starts if name not in dones]:
    raise ValueError(f"collective %{lost[0]} starts in %{where} and is not done there")
  return {name: dones[name] for name in starts}


def _count_executions(
  computations: Computations, name: str, times: int, executions: collections.Counter[str]
) -> None:
  executions[name] += times
  for instruction in computations[name].values():
    if called := called_computation(computations, name, instruction):
      _count_executions(computations, called[0], times * called[1], executions)
    elif background := background_computation(instruction):
      _count_executions(computations, background, times, executions)


def _branches(instruction: Instruction) -> list[str]:
  if listed := re.search(r"branch_computations=\{([^}]*)\}", instruction.rest):
    return re.findall(r"%([\w.\-]+)", listed[1])
  return [instruction.attribute(f"{side}_computation") for side in ("true", "false")]


def _cycles_of(computations: Computations, name: str) -> int:
  return sum(
    estimated_cycles(instruction) * times
    for computation, times in count_executions(computations, name).items()
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
