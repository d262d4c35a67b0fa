import itertools
import threading
import time

import pytest

from train.data.prefetch import BatchFetcher


class Numbers:
  """Stands in for `Batches` with numbers; waits before each until it may go on."""

  def __init__(self, fail_at=None):
    self.count = 0
    self.fail_at = fail_at
    self.may_go_on = threading.Event()
    self.may_go_on.set()

  def __next__(self):
    self.may_go_on.wait()
    if self.count == self.fail_at:
      raise KeyError("gone")
    self.count += 1
    return {"number": self.count}

  def get_state(self):
    return {"next": self.count}


def never():
  return False


def test_batches_come_in_order_with_the_state_behind_each():
  numbers = Numbers()
  with BatchFetcher(numbers) as fetcher:
    for i in itertools.count(1):
      batch, state_after = fetcher.next(never)
      assert (batch["number"], state_after["next"]) == (i, i)
      if i == 5:
        break
  # One more is in the queue, and the thread holds another.
  assert numbers.count <= 7


def test_the_next_batch_is_fetched_in_advance():
  numbers = Numbers()
  with BatchFetcher(numbers) as fetcher:
    fetcher.next(never)
    deadline_seconds = time.monotonic() + 10
    while numbers.count < 2:
      assert time.monotonic() < deadline_seconds
      time.sleep(0.01)


def test_who_waits_can_be_interrupted():
  numbers = Numbers()
  numbers.may_go_on.clear()
  with BatchFetcher(numbers) as fetcher:
    answers = iter([False, False, True])
    assert fetcher.next(lambda: next(answers)) is None
    started_seconds = time.monotonic()
  # Closing does not wait for a read that does not return.
  assert time.monotonic() - started_seconds < 3
  numbers.may_go_on.set()


def test_what_the_iterator_raises_is_raised():
  with BatchFetcher(Numbers(fail_at=1)) as fetcher:
    fetcher.next(never)
    with pytest.raises(KeyError, match="gone"):
      fetcher.next(never)
