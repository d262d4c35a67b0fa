import itertools

import jax
import pytest

from profiling.measure import call_times


def test_seconds_of_a_call_are_the_median_of_rounds(monkeypatch):
  clock = itertools.count()
  monkeypatch.setattr(call_times.time, "perf_counter", lambda: float(next(clock) ** 2))
  ran = []
  # Rounds take 1, 5 and 9 s.
  assert call_times.seconds_per_call(lambda *arguments: ran.append(arguments), (7,), 5) == 1.0
  assert ran == [(7,)] * 16


def test_times_are_means_over_calls(monkeypatch):
  clock = iter([0.0, 6.0, 10.0, 19.0, 20.0, 23.0])
  monkeypatch.setattr(call_times.time, "perf_counter", lambda: next(clock))
  seconds = call_times.seconds_per_call(lambda array: array, (jax.numpy.ones(2),), 3)
  assert seconds == pytest.approx(2)


def test_a_call_goes_on_from_the_one_before():
  ran = []

  def run(number):
    ran.append(number)
    return number

  call_times.seconds_per_call(run, (0,), 2, next_arguments=lambda arguments, result: (result + 1,))
  assert ran == list(range(7))
