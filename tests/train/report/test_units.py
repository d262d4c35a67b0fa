import pytest

from train.report.units import format_duration, format_gib, format_size


@pytest.mark.parametrize(
  ("seconds", "text"),
  [(0, "0:00:00"), (59.6, "0:01:00"), (3725, "1:02:05"), (90_061, "1 d 1:01:01")],
)
def test_duration(seconds, text):
  assert format_duration(seconds) == text


@pytest.mark.parametrize(
  ("size_bytes", "text"),
  [(0, "0.0 kB"), (12_345, "12.3 kB"), (1e6, "1.0 MB"), (5.55e10, "55.5 GB")],
)
def test_size(size_bytes, text):
  assert format_size(size_bytes) == text


def test_gib_is_a_bare_number():
  assert format_gib(3.5 * 2**30) == "3.5"
