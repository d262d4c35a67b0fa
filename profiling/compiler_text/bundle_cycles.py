"""Counts the issue cycles of one Pallas kernel from libtpu's final schedule of it.

The schedule lists the bundles of a kernel; one bundle is issued each cycle (`bundle_text`). How
often each bundle is issued is not a constant in the text: loop bounds may depend on the core,
predicates on the iteration, and both go through registers and spills. `count_bundles` therefore
follows the path of one core. It computes the scalar values on which branches depend (`scalar_core`)
and counts the bundles on the way.

- A loop ends when its exit test says so. Mosaic runs a whole grid as one loop with a few iterations
  more than the grid has steps: it starts to copy in before the first step and copies out after the
  last one. The kernel's body is a predicated region of that loop.
- With megacore both cores run the same text. Each has half of the steps of a parallel axis, from an
  offset that it computes from its number. Half of an odd axis is rounded up, so that one step runs
  twice. Without a parallel axis the second core jumps over everything.
- A predicated region (`pl.when`) counts in the iterations in which it is entered. Where that
  depends on data, it counts every time: an upper bound, which `Region.assumed` reports.
- Bundles right after a branch (one on v4, four on v5p) are issued whether it is taken or not.
- A loop whose number of iterations depends on data is an error.

Cycles in which nothing is issued are not counted: waits for copies, barriers and stalls. What the
core copies between HBM (or CMEM) and VMEM is counted on the same path, so that the caller can tell
whether the copies take longer than the bundles.
"""

import bisect
import dataclasses
import itertools

from profiling.compiler_text.bundle_text import Branch, Schedule
from profiling.compiler_text.scalar_core import ScalarCore

BRANCHES_MAX = 10_000_000
"""A grid of a million steps takes a few million branches; more mean that the text was misread."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loop:
  """Counts a loop of the schedule.

  Attributes:
    first_bundle: address of the loop's first bundle.
    last_bundle: address of the last bundle that is issued in each iteration.
    entries: number of times that the loop is entered.
    iterations: number of iterations of all entries.
  """

  first_bundle: int
  last_bundle: int
  entries: int
  iterations: int

  @property
  def bundles(self) -> int:
    """Returns the number of bundles from first to last, including inner regions and loops."""
    return self.last_bundle - self.first_bundle + 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Region:
  """Counts a region, the bundles that a branch jumps over if it is taken.

  Attributes:
    first_bundle: address of the first bundle that is jumped over.
    last_bundle: address of the last bundle that is jumped over.
    reached: number of times that the branch is issued.
    entered: number of times that the branch is not taken.
    assumed: whether the predicate depended on data at least once; the region was then entered.
  """

  first_bundle: int
  last_bundle: int
  reached: int
  entered: int
  assumed: bool

  @property
  def bundles(self) -> int:
    """Returns the number of bundles from first to last."""
    return self.last_bundle - self.first_bundle + 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class BundleCount:
  """Counts what one core issues in one run of a kernel.

  Attributes:
    issues: number of times that each bundle of the text is issued.
    loops: loops in the order of their last bundles; an inner loop comes before the outer one.
    regions: regions in the order of their branches.
    branch_delay_bundles: number of bundles after a branch that are issued even if it is taken;
      None in a text without branches.
    copied_granules: size of what the core copies from HBM to VMEM and back, in units of the chip's
      `copy_granule_bytes`. A copy whose predicate depends on data counts every time.
  """

  issues: tuple[int, ...]
  loops: tuple[Loop, ...]
  regions: tuple[Region, ...]
  branch_delay_bundles: int | None
  copied_granules: int

  @property
  def issue_cycles(self) -> int:
    """Returns the number of issued bundles, each of which takes a cycle."""
    return sum(self.issues)

  @property
  def bundles(self) -> int:
    """Returns the number of bundles in the text."""
    return len(self.issues)

  @property
  def is_upper_bound(self) -> bool:
    """Returns whether the count includes a region whose predicate depends on data."""
    return any(region.assumed for region in self.regions)


def count_bundles(
  schedule: Schedule, *, core: int = 0, branches_max: int = BRANCHES_MAX
) -> BundleCount:
  """Follows one core through a schedule.

  Args:
    schedule: schedule of one kernel, from `parse_schedule`.
    core: number of the core in its chip. With a parallel axis in the grid, both cores give the same
      count; without one, the second core does nothing.
    branches_max: number of issued branches above which the text must have been misread.

  Raises:
    ValueError: the schedule has control flow that is not understood, or a loop whose trip count
      cannot be read.
  """
  walk = _Walk(schedule, core)
  walk.follow(branches_max)
  return walk.count()


class _Walk:
  """Follows the path of one core; an instance is used once."""

  def __init__(self, schedule: Schedule, core: int):
    self.schedule = schedule
    self.core = ScalarCore(schedule, core)
    self.delay = schedule.branch_delay_bundles or 0
    self.branch_addresses = sorted(schedule.branches)
    # Regions that the core is in and whose predicates depend on data.
    self.assumed_regions: list[Branch] = []
    # Issues are kept as differences from the previous bundle.
    self.differences = [0] * (len(schedule.bundles) + 1)
    self.reached = dict.fromkeys(schedule.branches, 0)
    self.taken = dict.fromkeys(schedule.branches, 0)
    self.assumed: set[int] = set()

  def follow(self, branches_max: int) -> None:
    """Goes from the first bundle to the last, from branch to branch."""
    position, branches = 0, 0
    while position < len(self.schedule.bundles):
      while self.assumed_regions and position >= self.assumed_regions[-1].target:
        self.core.forget(self.assumed_regions.pop())
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
      if branches > branches_max:
        raise ValueError(f"more than {branches_max} branches: a loop's exit test was misread")

  def count(self) -> BundleCount:
    """Returns what was counted on the way."""
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
      copied_granules=self.core.copied_granules,
    )

  def _issue(self, start: int, stop: int) -> None:
    self.core.execute(start, stop)
    self.differences[start] += 1
    self.differences[stop] -= 1

  def _position_after(self, branch: Branch) -> int:
    """Returns the address at which the core continues after it issued a branch."""
    at = branch.address
    self.reached[at] += 1
    taken = self.core.condition(branch.instruction)
    if taken is None:
      if branch.is_backward:
        raise ValueError(
          f"the trip count of the loop at bundles {branch.target:#x} to {at:#x} cannot be read:"
          f" its exit test %{branch.instruction.predicate} depends on data"
        )
      self.assumed.add(at)
      self.core.assume_not_taken(branch)
      self.assumed_regions.append(branch)
    if not taken:
      return at + 1
    self.taken[at] += 1
    behind = at + 1 + self.delay
    if any(address in self.schedule.branches for address in range(at + 1, behind)):
      raise ValueError(f"bundle {at:#x}: another branch right after this one is not understood")
    if at < branch.target < behind:
      raise ValueError(f"bundle {at:#x}: the branch's target is issued anyway")
    self._issue(at + 1, behind)
    return branch.target
