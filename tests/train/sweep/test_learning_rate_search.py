"""The search for learning rates on losses that are known, with any number of trials under way."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from train.sweep.learning_rate_search import (
  GRID_STEPS_MAX,
  Cell,
  Finished,
  proposals,
)

START = 1.6
# Paper A, best peak learning rate at batch 4096, by parameters and core-hours an epoch.
EPOCHS = (0.25, 0.5, 1, 2, 4, 8)
PAPER = {
  (160_600_000, 1610): (1.6, 1.6, 1.6, 1.6, 1.6, 0.8),
  (344_000_000, 4870): (1.6, 1.6, 1.6, 0.8, 0.8, 0.4),
  (951_700_000, 13380): (1.6, 1.6, 1.6, 0.8, 0.4, 0.4),
}
PAPER_RATES = {
  Cell(parameters=parameters, epochs=epochs): rate
  for (parameters, _), rates in PAPER.items()
  for epochs, rate in zip(EPOCHS, rates, strict=True)
}
CORE_HOURS = {
  Cell(parameters=parameters, epochs=epochs): hours * epochs
  for parameters, hours in PAPER
  for epochs in EPOCHS
}
CELL = Cell(parameters=100, epochs=1)
SMALLER = Cell(parameters=50, epochs=1)
SHORTER = Cell(parameters=100, epochs=0.5)
LARGER = Cell(parameters=200, epochs=1)


def next_rates(cell, finished):
  """Returns the rates that a cell wants if it waits for no other one."""
  return tuple(rate for _, rate in proposals([cell], finished, start_learning_rate=START))


def best_rate(cell, finished):
  """Returns the rate with the lowest loss, the highest of equals."""
  own = [trial for trial in finished if trial.cell == cell and not math.isnan(trial.loss)]
  return min(own, key=lambda trial: (trial.loss, -trial.learning_rate)).learning_rate


def trials(cell, losses):
  return [Finished(cell=cell, learning_rate=r, loss=loss) for r, loss in losses.items()]


def run(cells, loss_of, *, start=START, choose=lambda waiting: 0):
  """Runs a whole search: trials end one at a time, in the order that `choose` says."""
  finished, waiting, tried = [], [], set()
  while True:
    busy = {cell for cell, _ in waiting}
    for cell, rate in proposals(cells, finished, start_learning_rate=start, busy=busy):
      assert cell not in busy
      assert (cell, rate) not in tried
      tried.add((cell, rate))
      waiting.append((cell, rate))
    if not waiting:
      return finished
    cell, rate = waiting.pop(choose(waiting))
    finished.append(Finished(cell=cell, learning_rate=rate, loss=loss_of(cell, rate)))


def cell_by_cell(cells, loss_of):
  """The same with no cell begun before all smaller ones are settled."""
  finished = []
  for cell in sorted(cells, key=lambda one: one.parameters * one.epochs):
    while rates := next_rates(cell, finished):
      finished += trials(cell, {rate: loss_of(cell, rate) for rate in rates})
  return finished


def paper_loss(cell, rate):
  return 2.5 + 0.01 * abs(math.log2(rate / PAPER_RATES[cell]))


@pytest.mark.parametrize("start", [0.4, 0.8, 1.6, 3.2, 6.4])
def test_two_trials_a_cell_on_the_rates_of_the_paper(start):
  found = run(list(PAPER_RATES), paper_loss, start=start)
  for cell, rate in PAPER_RATES.items():
    assert best_rate(cell, found) == rate
  print(f"{len(found)} trials, {len(found) / len(PAPER_RATES):.2f} a cell, from {start}")
  # A start that is wrong costs trials of the smallest cell alone.
  assert len(found) == {0.4: 40, 0.8: 39, 1.6: 38, 3.2: 37, 6.4: 38}[start]


def test_what_it_saves_that_third_rates_wait():
  hours = [
    sum(CORE_HOURS[trial.cell] for trial in found)
    for found in (
      run(list(PAPER_RATES), paper_loss),
      cell_by_cell(list(PAPER_RATES), paper_loss),
    )
  ]
  two_each = 2 * sum(CORE_HOURS.values())
  assert hours[0] / two_each == pytest.approx(1.02, abs=0.005)
  assert hours[1] / two_each == pytest.approx(1.18, abs=0.005)
  assert len(cell_by_cell(list(PAPER_RATES), paper_loss)) == 41


@st.composite
def tables(draw):
  """Best steps that fall with size and budget by up to two steps each, but not off the grid."""
  sizes, budgets = draw(st.integers(1, 3)), draw(st.integers(1, 3))
  table = {}
  for i in range(sizes):
    for j in range(budgets):
      above = [table[at] for at in ((i - 1, j), (i, j - 1)) if at in table]
      top = min(above) if above else draw(st.integers(-3, 4))
      table[i, j] = max(top - draw(st.integers(0, 2)), -GRID_STEPS_MAX)
  return {Cell(parameters=10 * 3**i, epochs=0.5 * 2**j): step for (i, j), step in table.items()}


@st.composite
def valleys(draw):
  """A loss with one valley at step 0, which may be two steps wide; far above it, runs diverge."""
  left, right = draw(st.floats(0.01, 1)), draw(st.floats(0.01, 1))
  is_wide = draw(st.booleans())
  diverges_from = draw(st.integers(1, 20))
  diverged = draw(st.sampled_from((math.inf, math.nan)))

  def loss(step):
    if step >= diverges_from:
      return diverged
    below = -step - 1 if is_wide and step < 0 else -step
    return 2 + max(left * below, right * step, 0)

  return loss


@settings(max_examples=100, deadline=None)
@given(tables(), st.data())
def test_finds_the_best_of_any_valleys_that_fall(table, data):
  losses = {cell: data.draw(valleys()) for cell in table}

  def loss_of(cell, rate):
    return losses[cell](round(math.log2(rate / START)) - table[cell])

  found = run(
    list(table), loss_of, choose=lambda waiting: data.draw(st.integers(0, len(waiting) - 1))
  )
  for cell in table:
    best = best_rate(cell, found)
    assert loss_of(cell, best) == 2
    assert next_rates(cell, found) == ()


@settings(max_examples=100, deadline=None)
@given(tables(), st.data())
def test_ends_whatever_the_losses(table, data):
  """And never wants a rate twice, which `run` looks at."""
  loss = st.sampled_from((1.0, 2.0, 3.0, math.inf, math.nan))
  found = run(
    list(table),
    lambda cell, rate: data.draw(loss),
    choose=lambda waiting: data.draw(st.integers(0, len(waiting) - 1)),
  )
  cells = {trial.cell for trial in found}
  without_a_rate = cells - {trial.cell for trial in found if math.isfinite(trial.loss)}
  # Where every rate down to the end of the grid diverges, larger cells have none to try.
  for cell in set(table) - cells:
    assert any(other.is_within(cell) for other in without_a_rate)


@pytest.mark.parametrize(
  ("finished", "rates"),
  [
    ({}, (1.6, 0.8)),
    # Neighbors say where to begin.
    ({SMALLER: {0.8: 1, 0.4: 2, 1.6: 2}}, (0.8, 0.4)),
    ({SMALLER: {0.8: 1, 1.6: 2}}, (0.8, 0.4)),
    ({SMALLER: {1.6: 1, 3.2: 2}, SHORTER: {0.4: 1, 0.8: 2}}, (0.4, 0.2)),
    ({LARGER: {0.4: 1, 0.2: 2}}, (0.8, 0.4)),
    ({SMALLER: {0.8: 1, 1.6: 2}, LARGER: {0.8: 1, 0.4: 2}}, (0.8,)),
    ({SMALLER: {1.6: 1, 3.2: 2}, LARGER: {0.4: 1, 0.2: 2}}, (1.6, 0.8)),
    ({SMALLER: {1.6: math.inf}}, (0.8, 0.4)),
    # They contradict each other.
    ({SMALLER: {0.4: 1, 0.8: 2}, LARGER: {1.6: 1, 0.8: 2}}, (0.4, 0.2)),
    # Neither smaller nor larger, or beside the grid.
    ({Cell(parameters=50, epochs=2): {0.2: 1, 0.4: 2}}, (1.6, 0.8)),
    ({SMALLER: {0.3: 1, 0.6: 2}}, (1.6, 0.8)),
    # On from the better one of two, where that is open.
    ({CELL: {1.6: 1, 0.8: 2}}, (3.2,)),
    ({CELL: {1.6: 1, 0.8: 2}, SMALLER: {1.6: 1, 3.2: 2}}, ()),
    ({CELL: {1.6: 2, 0.8: 1}}, (0.4,)),
    ({CELL: {1.6: 2, 0.8: 1}, LARGER: {0.8: 1, 0.4: 2}}, ()),
    ({CELL: {1.6: 2, 0.8: 1, 0.4: 1.5}}, ()),
    # The valley's bottom is between equals.
    ({CELL: {1.6: 1, 0.8: 1}}, ()),
    # Diverged.
    ({CELL: {1.6: math.inf, 0.8: 1}}, (0.4,)),
    ({CELL: {1.6: math.nan, 0.8: math.inf}}, (0.4,)),
    ({CELL: {1.6: math.inf, 0.8: math.inf}, LARGER: {0.8: 1, 0.4: 2}}, (0.4,)),
    # Against what smaller cells say, but tried.
    ({CELL: {1.6: 1, 0.8: 2}, SMALLER: {0.4: 1, 0.8: 2}}, ()),
  ],
)
def test_next_rates(finished, rates):
  every = [trial for cell, losses in finished.items() for trial in trials(cell, losses)]
  assert next_rates(CELL, every) == rates


def test_the_grid_has_an_end():
  everything_diverged = {START * 2.0**-step: math.inf for step in range(GRID_STEPS_MAX + 1)}
  finished = trials(CELL, everything_diverged)
  assert next_rates(CELL, finished) == ()
  # Nor has a larger one anything to try.
  assert next_rates(LARGER, finished) == ()
  ever_better = {START * 2.0**step: -step for step in range(GRID_STEPS_MAX + 1)}
  assert next_rates(CELL, trials(CELL, ever_better)) == ()


def test_a_cell_waits_for_the_smaller_ones():
  def wanted(finished, **options):
    return proposals([LARGER, CELL], finished, start_learning_rate=START, **options)

  assert wanted([]) == [(CELL, 1.6), (CELL, 0.8)]
  assert wanted([], busy={CELL}) == []
  # It may rise.
  assert wanted(trials(CELL, {1.6: 1, 0.8: 2})) == [(CELL, 3.2)]
  # It cannot; that it may fall has to wait for the larger one.
  falling = trials(CELL, {1.6: 2, 0.8: 1})
  assert wanted(falling) == [(LARGER, 0.8), (LARGER, 0.4)]
  assert wanted(falling, busy={LARGER}) == []
  assert wanted(falling + trials(LARGER, {0.8: 1, 0.4: 2})) == []
  assert wanted(falling + trials(LARGER, {0.8: 2, 0.4: 1, 0.2: 2})) == [(CELL, 0.4)]
  # All that was tried has diverged.
  assert wanted(trials(CELL, {1.6: math.inf, 0.8: math.inf})) == [(CELL, 0.4)]


def test_nothing_waits_for_a_cell_that_is_given_up():
  wanted = proposals([LARGER, CELL], [], start_learning_rate=START, given_up={CELL})
  assert wanted == [(LARGER, 1.6), (LARGER, 0.8)]
  falling = trials(CELL, {1.6: 2, 0.8: 1})
  wanted = proposals([LARGER, CELL], falling, start_learning_rate=START, given_up={LARGER})
  assert wanted == [(CELL, 0.4)]
