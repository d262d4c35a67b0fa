"""The tables of README.md and docs/ are what profiling/results gives."""

import re

import pytest

from nfnet.errors import UserError
from profiling import result_tables
from profiling.estimate.stored import read_stored


def cells(table):
  """Rows of a Markdown table, each a list of its cells; the header and the rule left out."""
  return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


@pytest.mark.parametrize("page", result_tables.PAGES, ids=lambda page: page.name)
def test_pages_show_the_stored_results(page):
  """`python -m profiling.result_tables` writes them anew."""
  text = page.read_text(encoding="utf-8")
  assert "<!-- results:" in text
  assert result_tables.fill(text, page.name) == text


def test_every_text_is_on_a_page():
  text = "".join(page.read_text(encoding="utf-8") for page in result_tables.PAGES)
  for name in result_tables.RESULT_TEXTS:
    assert f"<!-- results: {name} -->" in text, name


def test_other_figures_are_noticed():
  text = "<!-- results: generations -->\n\n| v3 | 1 ms |\n\n<!-- end of results -->\n"
  filled = result_tables.fill(text, "page.md")
  assert "| v3 | 1 ms |" not in filled
  assert result_tables.generations() in filled
  assert result_tables.fill(filled, "page.md") == filled


@pytest.mark.parametrize(
  ("text", "complaint"),
  [
    ("<!-- results: nothing -->\n<!-- end of results -->\n", "page.md: unknown results 'nothing'"),
    ("<!-- results: ops -->\n| a |\n", "page.md: 0 of 1 marked places are complete"),
    ("| a |\n<!-- end of results -->\n", "page.md: 0 of 0 marked places"),
  ],
)
def test_wrong_markers_are_refused(text, complaint):
  with pytest.raises(UserError, match=complaint):
    result_tables.fill(text, "page.md")


def test_core_hours_are_those_of_the_command():
  estimated = {
    run["variant"]: run["estimated_core_hours"]
    for run in read_stored("core_hours_pallas.json")["pretraining"]
    if run["epochs"] == 1
  }
  rows = {row[0]: row[4] for row in cells(result_tables.core_hours())}
  assert rows == {variant: f"{hours:,.0f}" for variant, hours in estimated.items()}


def test_range_of_core_hours_has_the_error_bar():
  spread = read_stored("calibration.json")["tables"]["v3"]["spread"]
  ratios = [float(row[-1]) for row in cells(result_tables.core_hours())]
  low, high = re.search(
    r"need ([\d.]+) to ([\d.]+) times", result_tables.core_hours_range()
  ).groups()
  assert float(low) == pytest.approx(min(ratios) * spread["lowest"], abs=0.02)
  assert float(high) == pytest.approx(max(ratios) * spread["highest"], abs=0.02)


def test_ops_are_means_over_f0_and_f7_plus():
  rows = {row[0]: row for row in cells(result_tables.ops())}
  stems = [
    row["xla_cycles"] / row["kernel_cycles"]
    for row in read_stored("ops.json")["rows"]
    if row["label"].startswith("stem") and row["direction"] == "forward"
  ]
  assert len(stems) == 2
  assert float(rows["stem"][2]) == pytest.approx((stems[0] * stems[1]) ** 0.5, abs=0.005)
  assert len(rows) == 5
  # XLA computes the layer itself.
  (classifier,) = (row for name, row in rows.items() if name.startswith("classifier"))
  assert classifier[1:3] == ["2", ""]
  assert float(classifier[3]) > 1


def test_the_first_hour_expects_what_is_stored():
  kernels = {row[0]: row for row in cells(result_tables.first_hour_kernels())}
  stored = {(row["label"], row["direction"]): row for row in read_stored("ops.json")["rows"]}
  label = next(label for label in kernels if label.startswith("stem"))
  assert kernels[label][1:] == [
    "1",
    *(f"{stored[label, way]['kernel_cycles'] / 1050:.1f}" for way in ("forward", "backward")),
    "",
  ]
  whole, *parts = cells(result_tables.first_hour_step())
  assert whole[2] == f"{read_stored('step_f0.json')['estimated']['step_seconds'] * 1e3:.2f}"
  assert sum(float(row[2]) for row in parts) == pytest.approx(float(whole[2]), abs=0.1)
  # 3/4 of 256 MiB over two links of 50 GB/s, twice.
  assert cells(result_tables.first_hour_collectives())[0] == ["psum", "15.7", "251.7", "4,026.5"]
