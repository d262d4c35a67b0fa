import pytest

from profiling.compiler_text.bundle_cycles import count_bundles
from profiling.compiler_text.bundle_text import parse_schedule
from profiling.compiler_text.unit_utilization import parse_utilization, unit_utilization
from tests.profiling.compiler_text.bundle_excerpts import schedule, utilization

V4_KERNELS = [
  "matmul",
  "nested_loops",
  "first_and_last",
  "odd_grid",
  "region_by_data",
  "region_by_step_and_data",
  "loop_by_step",
  "arithmetic",
]


def test_units_of_nested_loops():
  count = count_bundles(parse_schedule(schedule("v4_nested_loops")))
  shares = unit_utilization(utilization("v4_nested_loops"), count)
  # Vector instructions are one each at 0x15 (once), 0x16 and 0x1d (5 times), 0x17 and 0x19 (35
  # times), and two at 0x1b; loads at 0x14 and 0x17; a store at 0x1d.
  assert shares["VALU"] == pytest.approx((1 + 2 * 5 + 4 * 35) / (2 * 229))
  assert shares["VLOAD"] == pytest.approx((1 + 35) / 229)
  assert shares["VSTORE"] == pytest.approx(5 / 229)
  assert [shares[unit] for unit in ("MXU", "XLU", "VPOP", "EUP", "VLOAD:FILL")] == [0] * 5


def test_units_of_the_matmul():
  count = count_bundles(parse_schedule(schedule("v4_matmul")))
  text = utilization("v4_matmul")
  capacities, _ = parse_utilization(text)
  assert capacities == {
    "MXU": 4,
    "XLU": 2,
    "VALU": 2,
    "VPOP": 2,
    "EUP": 1,
    "VLOAD": 1,
    "VLOAD:FILL": 1,
    "VSTORE": 1,
    "VSTORE:SPILL": 1,
    "SALU": 2,
  }
  shares = unit_utilization(text, count)
  assert shares["MXU"] == pytest.approx(0.839, abs=5e-4)
  assert shares["VLOAD:FILL"] == pytest.approx(0.163, abs=5e-4)
  assert shares["VSTORE:SPILL"] == pytest.approx(0.063, abs=5e-4)


@pytest.mark.parametrize("name", V4_KERNELS)
def test_shares_are_shares(name):
  shares = unit_utilization(
    utilization(f"v4_{name}"), count_bundles(parse_schedule(schedule(f"v4_{name}")))
  )
  assert all(0 <= share <= 1 for share in shares.values())
  assert shares["VLOAD:FILL"] <= shares["VLOAD"]
  assert shares["VSTORE:SPILL"] <= shares["VSTORE"]


def test_tables_that_do_not_fit_are_refused():
  count = count_bundles(parse_schedule(schedule("v4_nested_loops")))
  text = utilization("v4_nested_loops")
  with pytest.raises(ValueError, match="2684 bundles, and the schedule has 47"):
    unit_utilization(utilization("v4_matmul"), count)
  with pytest.raises(ValueError, match="no tables"):
    unit_utilization(schedule("v4_nested_loops"), count)
  with pytest.raises(ValueError, match="9 figures for 10 units"):
    unit_utilization(text.replace("0 0 1 0 0 0 0 1 0 2", "0 0 1 0 0 0 0 1 0"), count)
  with pytest.raises(ValueError, match="invalid literal"):
    unit_utilization(text.replace("0 0 1 0 0 0 0 1 0 2", "0 0 1 0 0 0 0 1 0 x"), count)
