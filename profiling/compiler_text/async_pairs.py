"""Finds asynchronous collectives in optimized HLO text: pairs of a start and its done."""

from profiling.compiler_text.control_flow import background_computation, count_executions
from profiling.compiler_text.hlo_text import Computations, Instruction, kind_of


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
