"""Converts the time that chips take to core-hours, the unit in which paper A states costs."""

from profiling.compiler_text.chips import Chip


def core_hours(chip: Chip, chips: float, seconds: float) -> float:
  """Returns TensorCore-hours: chips x cores per chip x hours, as paper A counts (2 per v4 chip).

  Args:
    chip: generation of the chips.
    chips: number of chips that work for that time.
    seconds: time.
  """
  return chips * chip.cores * seconds / 3600
