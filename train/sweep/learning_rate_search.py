"""Chooses which learning rates to try next: paper A's rule of two trials, as pure functions.

Paper A (https://arxiv.org/abs/2310.16764, section 2) tunes the peak learning rate of each model and
epoch budget on a logarithmic grid of factor 2. Its authors expect two trials to suffice, because
the best rate falls slowly and monotonically with the model's size and with the budget.

A cell is one model with one budget. The best rate of a cell lies in a span of the grid that is
bounded

- by its own trials, because the loss has one valley over the grid: the best rate lies between the
  neighbors of the best rate tried. A trial that diverged has an infinite loss; if all did, the best
  rate lies below them;
- by trials of other cells: the best rate is at most the highest possible one of any cell that is
  larger in neither respect, and at least the lowest possible one of any that is smaller in neither.

A cell is settled when every rate of its span has been tried. A new cell first tries the two highest
rates of its span. While the best rate tried is at the edge of the tried ones and the span goes on
beyond it, the next rate on that side follows, one at a time.

The order of trials (`proposals`) saves more of them. A cell begins when every smaller one has had
its two trials and its best rate cannot rise any more, and so bounds the cell from above. A third
rate, below these two, waits for all larger cells: they have to try that rate anyway, and one of
them may show that the best rate is no lower. With the best rates that paper A published, 18 cells
then need 38 trials, 2.1 for each cell, and 2 % more core-hours than two trials in each. If third
rates ran first, the cells would need 41 trials and 18 % more core-hours
(tests/train/sweep/test_learning_rate_search.py).
"""

import dataclasses
import math
from collections.abc import Collection, Iterable, Mapping

GRID_FACTOR = 2
"""Ratio of neighboring rates. A power of 2 times a float is exact, so equal rates compare equal."""
GRID_STEPS_MAX = 10
"""Largest number of steps from the start rate, a factor of 1000, so that every search ends."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
  """One model with one budget.

  Attributes:
    parameters: number of trained scalars of the model.
    epochs: epoch budget.
  """

  parameters: int
  epochs: float

  def is_within(self, other: "Cell") -> bool:
    """Returns whether this cell is larger in neither respect, so that its best rate is no lower.

    A cell is not within itself.
    """
    return self != other and self.parameters <= other.parameters and self.epochs <= other.epochs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finished:
  """One trial that is over.

  Attributes:
    cell: cell of the trial.
    learning_rate: peak learning rate; trials off the grid are ignored.
    loss: held-out loss in nats; infinite or NaN if the run diverged.
  """

  cell: Cell
  learning_rate: float
  loss: float


def proposals(
  cells: Collection[Cell],
  finished: Iterable[Finished],
  *,
  start_learning_rate: float,
  busy: Collection[Cell] = (),
  given_up: Collection[Cell] = (),
) -> list[tuple[Cell, float]]:
  """Returns the trials to run now.

  Args:
    cells: cells to be settled.
    finished: trials that are over, of these cells or of others.
    start_learning_rate: rate of the grid at which a cell begins that no other cell bounds.
    busy: cells with trials that wait or run; they get no further ones until these are over.
    given_up: cells with a trial that failed for a reason other than its rate; no cell waits for
      them.

  Returns:
    Cells and rates, the cheapest cell first and its highest rate first; empty if all cells are
    settled or wait for trials that run.
  """
  active = [cell for cell in cells if cell not in given_up]
  tried = _tried(finished, start_learning_rate)
  views = {cell: _View.of(cell, tried) for cell in active}
  found = []
  for cell in sorted(active, key=lambda one: (one.parameters * one.epochs, one.parameters)):
    if cell in busy:
      continue
    view = views[cell]
    if view.may_rise():
      # These trials bound the larger cells, so they are never deferred. A cell without trials
      # begins when the cells within it have bounded it.
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
  """The state of the search in a cell; a step is a rate's index on the grid, 0 at the start rate.

  Attributes:
    tried: loss by step.
    low: lowest step that can be the best.
    high: highest step that can be the best; below `low` if none can.
  """

  tried: dict[int, float]
  low: int
  high: int

  @classmethod
  def of(cls, cell: Cell, tried: Mapping[Cell, dict[int, float]]) -> "_View":
    """Returns the view of a cell, given the losses by step of all cells."""
    own = tried.get(cell, {})
    low, high = _span(own)
    for other, losses in tried.items():
      if other.is_within(cell):
        high = min(high, _span(losses)[1])
      if cell.is_within(other):
        low = max(low, _span(losses)[0])
    if low > high and not any(loss < math.inf for loss in own.values()):
      # Either larger cells contradict smaller ones, or all trials of this cell have diverged.
      low = -GRID_STEPS_MAX
    return cls(tried=own, low=low, high=high)

  def next_steps(self) -> tuple[int, ...]:
    """Returns the steps that the cell wants next, highest first: two at first, then one."""
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
    """Returns whether the cell wants trials that can bound larger cells from above."""
    if not self.tried or min(self.tried.values()) == math.inf:
      return bool(self.next_steps())
    return bool(self._open_steps()[0])

  def _open_steps(self) -> tuple[list[int], list[int]]:
    """Returns the untried steps of the span above and below the best one."""
    best = _best_step(self.tried)
    untried = [step for step in range(self.low, self.high + 1) if step not in self.tried]
    return [step for step in untried if step > best], [step for step in untried if step < best]


def _tried(
  finished: Iterable[Finished], start_learning_rate: float
) -> dict[Cell, dict[int, float]]:
  """Returns the losses by step of the grid for each cell; NaN becomes infinite."""
  tried: dict[Cell, dict[int, float]] = {}
  for trial in finished:
    step = round(math.log(trial.learning_rate / start_learning_rate, GRID_FACTOR))
    if trial.learning_rate == start_learning_rate * GRID_FACTOR**step:
      loss = math.inf if math.isnan(trial.loss) else trial.loss
      tried.setdefault(trial.cell, {})[step] = loss
  return tried


def _best_step(tried: dict[int, float]) -> int:
  """Returns the step with the lowest loss: the highest of equals, the lowest if all diverged."""
  least = min(tried.values())
  steps = [step for step, loss in tried.items() if loss == least]
  return min(steps) if least == math.inf else max(steps)


def _span(tried: dict[int, float]) -> tuple[int, int]:
  """Returns the lowest and highest step that can be the best by the cell's own trials."""
  low, high = -GRID_STEPS_MAX, GRID_STEPS_MAX
  if not tried:
    return low, high
  least = min(tried.values())
  if least == math.inf:
    return low, min(tried) - 1
  best = [step for step, loss in tried.items() if loss == least]
  if len(best) > 1:
    # The bottom of a single valley lies between equal losses.
    return min(best), max(best)
  low = max((step + 1 for step in tried if step < best[0]), default=low)
  high = min((step - 1 for step in tried if step > best[0]), default=high)
  return low, high
