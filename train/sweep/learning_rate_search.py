"""Which learning rates to try next: the rule of two trials of paper A, as pure functions.

Paper A (https://arxiv.org/abs/2310.16764, section 2) tunes the peak learning rate of each model and
epoch budget on a logarithmic grid of factor 2. Its authors believe that two trials suffice, because
the best rate falls slowly and monotonically with the model's size and with the budget.

A cell is one model with one budget. The best rate of a cell lies in a span of the grid:

- Its own trials bound it, as the loss has one valley over the grid: it lies between the neighbors
  of the best rate tried. A trial that diverged has an infinite loss; if all did, it lies below.
- Trials of other cells bound it: it is at most what a cell can have that is nowhere larger, and at
  least what a cell can have that is nowhere smaller.

A cell is settled when every rate of its span has been tried. A new cell first tries the two highest
rates of its span. If the better one is at an end of the span that is still open, the next rate
there follows, one at a time.

What runs when (`proposals`): a cell begins when every smaller one has had its two trials and cannot
rise any more, so that it bounds the cell from above. A third rate below these two waits for all
larger cells, one of which may show that the best rate is no lower: they have to try that rate
anyway. On the best rates that paper A published, 18 cells then need 38 trials, 2.1 a cell, and 2 %
more core-hours than two trials in each; were third rates run first, 41 trials and 18 % more
(tests/train/sweep/test_learning_rate_search.py).
"""

import dataclasses
import math
from collections.abc import Collection, Iterable

GRID_FACTOR = 2
"""Between neighboring rates. A power of 2 times a float is exact, so that equal rates are equal."""
GRID_STEPS_MAX = 10
"""From the start rate, up or down: a factor of 1000, so that every search ends."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
  """One model with one budget.

  Attributes:
    parameters: size of the model, scalars.
    epochs: budget.
  """

  parameters: int
  epochs: float

  def is_within(self, other: "Cell") -> bool:
    """Whether it is another cell, and larger in neither respect: its best rate is not lower."""
    return self != other and self.parameters <= other.parameters and self.epochs <= other.epochs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finished:
  """One trial that is over.

  Attributes:
    cell: of the trial.
    learning_rate: peak. Trials beside the grid are not looked at.
    loss: held-out, nats; infinite or NaN if the run diverged.
  """

  cell: Cell
  learning_rate: float
  loss: float


def next_rates(
  cell: Cell, finished: Iterable[Finished], *, start_learning_rate: float
) -> tuple[float, ...]:
  """The rates that the cell wants next, highest first: two, then one at a time.

  Args:
    cell: any, tried or not.
    finished: trials of all cells. None of this cell may be under way.
    start_learning_rate: a rate of the grid; where a cell begins that no other one tells anything.

  Returns:
    None that was tried; empty if the cell is settled, or if no rate of the grid could be.
  """
  finished = list(finished)
  view = _View.of(cell, finished, start_learning_rate)
  return tuple(start_learning_rate * GRID_FACTOR**step for step in view.next_steps())


def best_rate(
  cell: Cell, finished: Iterable[Finished], *, start_learning_rate: float
) -> float | None:
  """The rate with the lowest loss so far; the highest of equals. None if nothing is left of any.

  Args:
    cell: any.
    finished: trials of all cells.
    start_learning_rate: as for `next_rates`.
  """
  tried = _tried(finished, start_learning_rate).get(cell, {})
  if not tried or min(tried.values()) == math.inf:
    return None
  return start_learning_rate * GRID_FACTOR ** _best_step(tried)


def proposals(
  cells: Collection[Cell],
  finished: Iterable[Finished],
  *,
  start_learning_rate: float,
  busy: Collection[Cell] = (),
  given_up: Collection[Cell] = (),
) -> list[tuple[Cell, float]]:
  """What to run now, cheapest first; empty if all cells are settled, or wait for what is running.

  Args:
    cells: to be settled.
    finished: trials, of these cells or of others.
    start_learning_rate: as for `next_rates`.
    busy: cells with trials that wait or run; they want nothing until these are over.
    given_up: cells with a trial that failed for a reason of its own; no cell waits for them.
  """
  finished = list(finished)
  active = [cell for cell in cells if cell not in given_up]
  views = {cell: _View.of(cell, finished, start_learning_rate) for cell in active}
  found = []
  for cell in sorted(active, key=lambda one: (one.parameters * one.epochs, one.parameters)):
    if cell in busy:
      continue
    view = views[cell]
    if view.may_rise():
      # All of this cell, and it bounds the larger ones: never deferred. An untried one begins when
      # those within it have bounded it.
      waits = not view.tried and any(
        other in busy or views[other].may_rise() for other in active if other.is_within(cell)
      )
    else:
      waits = any(
        other in busy or views[other].next_steps() for other in active if cell.is_within(other)
      )
    if not waits:
      found += [(cell, start_learning_rate * GRID_FACTOR**step) for step in view.next_steps()]
  return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class _View:
  """What is known of a cell; a step is a rate's place on the grid, 0 at the start rate.

  Attributes:
    tried: loss by step.
    low: lowest step that can be the best.
    high: highest step that can be the best; below `low` if nothing can.
  """

  tried: dict[int, float]
  low: int
  high: int

  @classmethod
  def of(cls, cell: Cell, finished: list[Finished], start_learning_rate: float) -> "_View":
    tried = _tried(finished, start_learning_rate)
    own = tried.get(cell, {})
    low, high = _span(own)
    for other, losses in tried.items():
      if other.is_within(cell):
        high = min(high, _span(losses)[1])
      if cell.is_within(other):
        low = max(low, _span(losses)[0])
    if low > high and not any(loss < math.inf for loss in own.values()):
      # The larger cells contradict the smaller ones, or everything here has diverged.
      low = -GRID_STEPS_MAX
    return cls(tried=own, low=low, high=high)

  def next_steps(self) -> tuple[int, ...]:
    """Highest first."""
    if not self.tried:
      if self.high < GRID_STEPS_MAX:
        pair = (self.high, self.high - 1)
      elif self.low > -GRID_STEPS_MAX:
        pair = (self.low + 1, self.low)
      else:
        pair = (0, -1)
      return tuple(step for step in pair if self.low <= step <= self.high)
    above, below = self._open_steps()
    return (min(above),) if above else (max(below),) if below else ()

  def may_rise(self) -> bool:
    """Whether more trials are due that can tell larger cells where their spans end above."""
    if not self.tried or min(self.tried.values()) == math.inf:
      return bool(self.next_steps())
    return bool(self._open_steps()[0])

  def _open_steps(self) -> tuple[list[int], list[int]]:
    """Untried steps of the span, above and below the best one."""
    best = _best_step(self.tried)
    untried = [step for step in range(self.low, self.high + 1) if step not in self.tried]
    return [step for step in untried if step > best], [step for step in untried if step < best]


def _tried(
  finished: Iterable[Finished], start_learning_rate: float
) -> dict[Cell, dict[int, float]]:
  """Losses by step of the grid, by cell; NaN is infinite."""
  tried: dict[Cell, dict[int, float]] = {}
  for trial in finished:
    step = round(math.log(trial.learning_rate / start_learning_rate, GRID_FACTOR))
    if trial.learning_rate == start_learning_rate * GRID_FACTOR**step:
      loss = math.inf if math.isnan(trial.loss) else trial.loss
      tried.setdefault(trial.cell, {})[step] = loss
  return tried


def _best_step(tried: dict[int, float]) -> int:
  """The highest of equals, but the lowest where all diverged."""
  least = min(tried.values())
  steps = [step for step, loss in tried.items() if loss == least]
  return min(steps) if least == math.inf else max(steps)


def _span(tried: dict[int, float]) -> tuple[int, int]:
  """Lowest and highest step that can be the best by the cell's own trials."""
  low, high = -GRID_STEPS_MAX, GRID_STEPS_MAX
  if not tried:
    return low, high
  least = min(tried.values())
  if least == math.inf:
    return low, min(tried) - 1
  best = [step for step, loss in tried.items() if loss == least]
  if len(best) > 1:
    # Of a single valley, the bottom is between them.
    return min(best), max(best)
  low = max((step + 1 for step in tried if step < best[0]), default=low)
  high = min((step - 1 for step in tried if step > best[0]), default=high)
  return low, high
