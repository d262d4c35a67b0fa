import math

import pytest

from nfnet.foreign_files.numbers import is_count, is_number


# From either sign to integers beyond 64 bits, such as the FLOP of a long run.
@pytest.mark.parametrize(
  "value", [0, -3, 2.5, -1e299, 1e-310, 10**22, -(10**299)], ids=lambda value: f"{value!s:.9}"
)
def test_finite_numbers_are_numbers(value):
  assert is_number(value)
  assert math.isfinite(2.0 * value)


@pytest.mark.parametrize(
  "value",
  [True, False, None, "1", [1], math.nan, math.inf, -math.inf, 10**308, 10**400, -(10**400)],
  ids=lambda value: f"{value!s:.9}",
)
def test_what_no_sum_of_floats_can_hold_is_not_a_number(value):
  assert not is_number(value)


@pytest.mark.parametrize(
  ("value", "counts"),
  [(0, True), (2**63 - 1, True), (2**63, False), (-1, False), (1.0, False), (True, False)],
)
def test_counts_are_integers_of_64_bits(value, counts):
  assert is_count(value) == counts
