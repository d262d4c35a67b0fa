"""Reads how much of each unit's capacity a kernel uses."""

import operator

from profiling.compiler_text.bundle_cycles import BundleCount


def unit_utilization(utilization_text: str, count: BundleCount) -> dict[str, float]:
  """Returns the use of each unit over all issued bundles, as shares of its capacity.

  Args:
    utilization_text: content of the `*-final_hlo-static-per-bundle-utilization.txt` of the kernel.
    count: count of the same kernel's bundles, from `count_bundles`.

  Returns:
    Shares from 0 to 1, by the names and in the order of the text: MXU, XLU, VALU, VPOP, EUP, VLOAD,
    VLOAD:FILL, VSTORE, VSTORE:SPILL, SALU. A capacity is in instructions a cycle. Fills and spills
    also count as loads and stores. MXU counts units in use, which is not the share of the peak:
    0.839 for a matrix product that reaches 0.918 of the peak.

  Raises:
    ValueError: the text is not such a table or belongs to another schedule.
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
  """Parses the text into the units' capacities and the instructions of each bundle.

  Returns:
    Capacity in instructions a cycle by unit, and for each bundle the instructions of each unit.

  Raises:
    ValueError: the text is not such a table.
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
