"""Times of hand-made schedules, in whole seconds."""

import random

import pytest

from profiling.compiler_text.schedule import Event, Loop, unroll
from profiling.estimate.overlap import Exposed, Work, exposed_time
from profiling.estimate.transfers import Transfer

X, Y = (0, 1), (1, 1)


def transfer(seconds, *channels, hbm_share=0.0):
  return Transfer(seconds=seconds, channels=frozenset(channels), hbm_share=hbm_share)


def start(name):
  return Event("start", name)


def done(name):
  return Event("done", name)


def run(name):
  return Event("run", name)


def exposed(schedule, works, **transfers):
  """Returns the exposed time of a schedule, where a number is a kernel that does not need HBM."""
  given = {
    name: work if isinstance(work, Work) else Work(work, 0.0) for name, work in works.items()
  }
  return exposed_time(unroll(schedule), given, transfers)


@pytest.mark.parametrize(("kernel", "waiting"), [(5, 0), (4, 0), (3, 1), (0, 4)])
def test_what_is_left_of_a_transfer_at_its_done_is_waited_for(kernel, waiting):
  schedule = (start("a"), run("kernel"), done("a"))
  assert exposed(schedule, {"kernel": kernel}, a=transfer(4, X)) == Exposed(waiting, 0)


def test_what_runs_before_the_start_or_after_the_done_hides_nothing():
  schedule = (run("kernel"), start("a"), done("a"), run("kernel"))
  assert exposed(schedule, {"kernel": 9}, a=transfer(4, X)) == Exposed(4, 0)


def test_nested_pairs_share_a_link():
  schedule = (start("a"), start("b"), run("kernel"), done("b"), done("a"))
  # At half of their speed, both have one of four seconds left after six.
  assert exposed(schedule, {"kernel": 6}, a=transfer(4, X), b=transfer(4, X)) == Exposed(2, 0)


def test_pairs_that_overlap_in_part_share_a_link_only_meanwhile():
  schedule = (start("a"), run("two"), start("b"), run("four"), done("a"), done("b"))
  # Alone for two seconds, then at half speed for four: "a" has ended, and "b" has two left.
  works = {"two": 2, "four": 4}
  assert exposed(schedule, works, a=transfer(4, X), b=transfer(4, X)) == Exposed(2, 0)


def test_pairs_on_different_axes_do_not_share():
  schedule = (start("a"), start("b"), run("kernel"), done("a"), done("b"))
  assert exposed(schedule, {"kernel": 4}, a=transfer(4, X), b=transfer(4, Y)) == Exposed(0, 0)
  both = exposed(schedule, {"kernel": 4}, a=transfer(4, X, Y), b=transfer(4, Y))
  assert both == Exposed(4, 0)


def test_a_transfer_that_has_ended_before_its_done_leaves_its_link():
  schedule = (start("a"), run("kernel"), start("b"), run("kernel"), done("b"), done("a"))
  assert exposed(schedule, {"kernel": 4}, a=transfer(3, X), b=transfer(4, X)) == Exposed(0, 0)


def test_a_pair_in_a_loop_counts_once_a_trip():
  schedule = (Loop((start("a"), run("kernel"), done("a")), 5),)
  assert exposed(schedule, {"kernel": 3}, a=transfer(4, X)) == Exposed(5, 0)


def test_a_transfer_around_a_loop_shares_links_with_those_inside():
  schedule = (start("a"), Loop((start("b"), run("kernel"), done("b")), 2), done("a"))
  # Each trip takes four seconds for two of "b" and moves two of the nine seconds of "a".
  found = exposed(schedule, {"kernel": 3}, a=transfer(9, X), b=transfer(2, X))
  assert found == Exposed(2 + 5, 0)


def test_a_synchronous_collective_is_fully_exposed():
  schedule = (run("kernel"), run("a"), run("kernel"))
  assert exposed(schedule, {"kernel": 9}, a=transfer(4, X)) == Exposed(4, 0)


@pytest.mark.parametrize(("channel", "waiting"), [(X, 4 + 2), (Y, 2 + 2)])
def test_a_synchronous_collective_shares_links_with_a_transfer_in_flight(channel, waiting):
  schedule = (start("a"), run("b"), done("a"))
  found = exposed(schedule, {}, a=transfer(4, X), b=transfer(2, channel))
  assert found == Exposed(waiting, 0)


@pytest.mark.parametrize(
  ("work", "slowing", "waiting"),
  [
    # The transfer takes a quarter of HBM for two seconds: half a second of it.
    (Work(0, 4), 0.5, 0),
    # A kernel that issues for longer than it copies has HBM to spare: here enough,
    (Work(4, 3), 0, 0),
    # here not: at three quarters, copying all would take 5 seconds, so 2 of them do 2/5 of it.
    (Work(4, 3.75), 2 + 3 / 5 * 4 - 4, 0),
    # The operation ends first: 1.5 seconds of HBM take 2 at three quarters.
    (Work(0, 1.5), 0.5, 0),
    (Work(0, 0.75), 0.25, 1),
  ],
)
def test_an_operation_that_needs_hbm_is_lengthened_by_a_transfers_bytes(work, slowing, waiting):
  schedule = (start("a"), run("operation"), done("a"))
  found = exposed(schedule, {"operation": work}, a=transfer(2, X, hbm_share=0.25))
  assert (found.slowing_seconds, found.waiting_seconds) == pytest.approx((slowing, waiting))


def test_a_slower_transfer_takes_less_of_hbm():
  schedule = (start("a"), start("b"), run("operation"), done("a"), done("b"))
  quarter = transfer(2, X, hbm_share=0.25)
  found = exposed(schedule, {"operation": Work(0, 9)}, a=quarter, b=quarter)
  assert found == Exposed(0, 1)


def test_an_operation_stands_still_where_a_transfer_needs_all_of_hbm():
  schedule = (start("a"), run("operation"), done("a"))
  found = exposed(schedule, {"operation": Work(1, 3)}, a=transfer(2, X, hbm_share=1))
  assert found == Exposed(0, 2)


def test_a_transfer_without_links_takes_no_time():
  schedule = (start("a"), done("a"), run("a"))
  assert exposed(schedule, {}, a=transfer(0)) == Exposed(0, 0)


@pytest.mark.parametrize("seed", range(50))
def test_a_step_is_between_its_busiest_link_and_its_time_without_overlap(seed):
  generator = random.Random(seed)
  transfers = {
    f"transfer_{i}": transfer(
      generator.uniform(0.1, 5),
      *generator.sample([X, Y, (2, 1)], generator.randint(1, 3)),
      hbm_share=generator.choice([0.0, 0.3, 0.9]),
    )
    for i in range(8)
  }
  works = {
    f"operation_{i}": Work(generator.uniform(0, 3), generator.uniform(0, 3)) for i in range(10)
  }
  events = [run(name) for name in works]
  for name in transfers:
    first, last = sorted(generator.choices(range(len(events) + 1), k=2))
    events[last:last] = [done(name)]
    events[first:first] = [start(name)]
  found = exposed(events, works, **transfers)
  assert found.waiting_seconds >= 0
  assert found.slowing_seconds >= -1e-9
  compute = sum(work.seconds for work in works.values())
  step = compute + found.waiting_seconds + found.slowing_seconds
  assert step <= compute + sum(one.seconds for one in transfers.values()) + 1e-9
  for channel in (X, Y, (2, 1)):
    assert step >= sum(one.seconds for one in transfers.values() if channel in one.channels) - 1e-9
