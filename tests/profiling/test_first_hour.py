import json
import re

import pytest

from profiling import first_hour
from profiling.estimate.error_bar import Spread
from profiling.measure.first_hour import PARTS
from tests import commands
from tests.profiling.interpreted_kernels import WIDE
from tests.train.small_network import TINY


def run(runner, folder, *arguments):
  """Runs the command with few repetitions; returns what it prints and the report."""
  result = commands.run(
    *(runner, "profiling.first_hour", "--images=16", "--pixels=32", "--calls=1", "--steps=1"),
    *("--mebibytes=1", f"--folder={folder / 'profile'}", f"--json={folder / 'report.json'}"),
    *arguments,
  )
  assert result.returncode == 0, result.stderr
  return result.stdout, json.loads((folder / "report.json").read_text())


def check_report(text, report):
  """Checks that everything was measured, and that nothing was compared."""
  assert "These devices are not a TPU v4: estimates beside their times mean nothing" in text
  assert "No ratio of measured to estimated times, so no new error bar." in text
  assert report["measured_over_estimated"] == {}
  for part, figures in report["parts"].items():
    assert "failed" not in figures, figures
    assert f"\n{part}: " in text
    if part == "numerics":
      continue
    assert figures["incomparable"] == "not a TPU v4"
    for row in figures["rows"]:
      assert row["ratio"] is None
      assert row["estimated_seconds"] is None
  if "kernels" in report["parts"]:
    rows = report["parts"]["kernels"]["rows"]
    for row in rows:
      assert row["error"] is None
      # Backward passes are differences, which may be negative here.
      assert row["seconds"] > 0 or row["direction"] == "backward" or "se_residual" in row["label"]
    assert {row["direction"] for row in rows} == {"forward", "backward", "update"}
  step = report["parts"]["step"]
  assert step["seconds"] > 0
  seconds = {(row["part"], row["direction"]): row["seconds"] for row in step["rows"]}
  assert seconds["stem", "forward"] > 0
  assert seconds["stage 1", "backward"] > 0
  # The stored estimate's network has it; this one has not.
  assert seconds["stage 4", "forward"] is None
  assert [row["name"] for row in report["parts"]["collectives"]["rows"]] == [
    *("psum", "all_gather", "psum_scatter"),
  ]


# Three programs compile for each op.
@pytest.mark.parametrize(
  "parts",
  [
    ["step", "collectives"],
    pytest.param(["kernels", "step", "collectives"], marks=pytest.mark.slow),
  ],
)
def test_measures_ops_step_and_collectives_on_a_cpu(parts, tmp_path):
  text, report = run(
    "tests.train.small_network",
    tmp_path,
    f"--variant={TINY.name}",
    f"--parts={','.join(reversed(parts))}",
  )
  check_report(text, report)
  assert list(report["parts"]) == parts
  assert report["devices"]["chips"] == report["devices"]["devices"] == 8
  assert report["plan"]["variant"] == TINY.name
  if "kernels" in parts:
    # Its channels are too few.
    assert report["parts"]["kernels"]["fallbacks"]
  assert list((tmp_path / "profile").glob("plugins/profile/*/*.xplane.pb"))


@pytest.mark.slow
def test_measures_all_parts_with_interpreted_kernels(tmp_path):
  text, report = run("tests.profiling.interpreted_kernels", tmp_path, f"--variant={WIDE.name}")
  check_report(text, report)
  assert tuple(report["parts"]) == PARTS
  numerics = report["parts"]["numerics"]["rows"]
  assert all(row["agrees"] for row in numerics)
  # Kernels do not add up as references do.
  assert any(row["kernel_error"] != row["reference_error"] for row in numerics)
  assert report["parts"]["kernels"]["fallbacks"] == []


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--variant=F9"], "F9"),
    (["--parts=steps"], "no part 'steps'"),
    (["--parts="], "--parts= names none"),
    (["--pixels=100"], "--pixels=100: not a multiple of 32"),
    (["--json=pyproject.toml/report.json"], "--json=pyproject.toml/report.json"),
    (["stray"], "stray"),
  ],
)
def test_what_cannot_be_measured_is_one_line_before_the_work(arguments, message):
  result = commands.run("profiling.first_hour", "--parts=collectives", "--mebibytes=1", *arguments)
  assert result.returncode == 2
  assert not result.stdout
  assert re.fullmatch(rf"error: .*{re.escape(message)}.*\n", result.stderr), result.stderr


def cells(text, label):
  """Returns the cells after the label in the first line that begins with it."""
  line = next(line for line in text.splitlines() if line.startswith(label))
  return line.removeprefix(label).split()


def op(**fields):
  row = {"label": "conv", "direction": "forward", "calls": 2, "seconds": 1.5e-4, "error": None}
  row |= {"is_resolved": True, "estimated_seconds": 1e-4, "ratio": 1.5}
  return row | fields


def test_ops_are_shown_in_microseconds_beside_estimates():
  figures = {
    "incomparable": None,
    "rows": [
      op(),
      op(label="small", is_resolved=False, ratio=None),
      op(label="new", estimated_seconds=None, ratio=None),
      op(label="bad", seconds=None, ratio=None, is_resolved=False, error="Error: too large"),
    ],
    "compared_seconds": 3e-4,
    "compared_estimated_seconds": 2e-4,
    "fallbacks": [{"op": "stem", "reason": "too many channels"}],
  }
  text = first_hour.part_text("kernels", figures)
  assert cells(text, "conv") == ["forward", "2", "150.0", "100.0", "1.50"]
  assert cells(text, "small")[-1] == "host"
  assert cells(text, "new") == ["forward", "2", "150.0", "no", "estimate"]
  assert cells(text, "bad") == ["forward", "2", "100.0", "Error:", "too", "large"]
  assert "0.30 ms measured, 0.20 ms estimated; ratio 1.50" in text
  assert "stem ran its reference: too many channels" in text
  figures["incomparable"] = "not a TPU v4"
  assert "1.50" not in first_hour.part_text("kernels", figures).split("All calls")[0]


def test_the_step_is_shown_in_milliseconds_by_part():
  compared = {"estimated_seconds": 0.02, "ratio": 1.25}
  row = {"part": "stem", "direction": "forward", "seconds": 0.025, **compared}
  figures = {"incomparable": None, "seconds": 0.025, "images_per_second": 5120.0, **compared}
  text = first_hour.part_text("step", {**figures, "busy_share": 0.75, "rows": [row]})
  assert "measured 25.00 ms, 5120.0 images/s; estimated 20.00 ms; ratio: 1.25" in text
  assert cells(text, "stem") == ["forward", "25.00", "20.00", "1.25"]
  assert "idle for 25.0%" in text


def test_collectives_are_shown_in_microseconds():
  row = {"name": "psum", "whole_bytes": 2**24, "seconds": 3e-4, "estimated_seconds": 2e-4}
  text = first_hour.part_text(
    "collectives", {"incomparable": None, "rows": [{**row, "ratio": 1.5}]}
  )
  assert cells(text, "psum") == ["16.0", "300.0", "200.0", "1.50"]


def test_kernels_that_are_wrong_stand_out():
  row = {"label": "conv", "direction": "both", "kernel_error": 0.5, "reference_error": 1e-3}
  row |= {"error_max": 0.015, "failure": None, "agrees": False}
  text = first_hour.part_text("numerics", {"rows": [row]})
  assert cells(text, "conv") == ["both", "5.0e-01", "1.0e-03", "1.5e-02", "NO"]
  assert "0 of 1 agree" in text


def test_a_part_that_failed_is_a_line():
  text = first_hour.part_text("step", {"failed": "RuntimeError: out of memory"})
  assert text == "step: FAILED: RuntimeError: out of memory"


def test_the_new_error_bar_stands_beside_the_old_one():
  text = first_hour.summary_text({"kernels": Spread(mean=1.25, lowest=0.9, highest=2.0)})
  assert cells(text, "kernels") == ["1.25", "0.90", "2.00"]
  assert "1.19 to 1.41 times the estimate on TPU v3" in text
