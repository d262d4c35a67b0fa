import pytest

from profiling.compiler_text.chips import CHIPS
from profiling.estimate.core_hours import core_hours


def test_core_hours_count_two_cores_a_chip():
  # Paper A's F7+: 166.7 images/s on a v4 chip make 13,331 core-hours of 4e9 images.
  seconds = 4e9 / (166.7 * 1024)
  assert core_hours(CHIPS["v4"], 1024, seconds) == pytest.approx(13_331, rel=1e-3)
