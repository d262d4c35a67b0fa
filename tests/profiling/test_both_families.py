import json
import os
import subprocess
import sys

import pytest
from PIL import Image

from profiling.both_families import as_text, draw, read_points
from profiling.estimate.stored import read_stored
from tests.repository import ROOT


@pytest.fixture(scope="module")
def points():
  return {(point.name, point.epochs): point for point in read_points()}


def test_holds_every_network_whose_error_was_published(points):
  assert [name for name, epochs in points if epochs is None] == [
    "ViT-g/14",
    "SoViT-400m/14",
    "ViT-G/14",
  ]
  assert len(points) == 25 + 3
  assert points["F7+", 8].error_percent == 9.75
  assert points["ViT-G/14", None].error_percent == 9.55


def test_core_hours_are_those_of_the_estimator(points):
  for run in read_stored("core_hours_reference.json")["pretraining"]:
    if point := points.get((run["variant"], run["epochs"])):
      assert point.plain_core_hours == pytest.approx(run["estimated_core_hours"])
      assert point.published_core_hours == run["published_core_hours"]
  for run in read_stored("core_hours_pallas.json")["pretraining"]:
    point = points.get((run["variant"], run["epochs"]))
    if point:
      assert point.kernel_core_hours == pytest.approx(run["estimated_core_hours"])
  for step in read_stored("vit.json")["steps"]:
    point = points[step["model"], None]
    assert point.plain_core_hours == step["estimated_core_hours"]
    assert point.kernel_core_hours is None


def test_the_deepest_has_the_cost_of_its_step(points):
  """The chips have two cores, there are 128 of them, and an epoch is 4e9 images."""
  step = read_stored("core_hours_pallas.json")["steps"]["F7+"]
  seconds = 4e9 * 8 / step["batch_per_chip"] / 128 * step["step_seconds"]
  assert points["F7+", 8].kernel_core_hours == pytest.approx(seconds / 3600 * 128 * 2)


def test_draws_a_line_for_each_kind_of_cost(points):
  axes = draw(list(points.values())).axes[0]
  drawn = {tuple(line.get_xdata()) for line in axes.lines}
  for name in ("F3", "F7+"):
    own = [point for point in points.values() if point.name == name]
    for cost in ("published_core_hours", "plain_core_hours", "kernel_core_hours"):
      assert tuple(getattr(point, cost) for point in own) in drawn
  assert (points["SoViT-400m/14", None].plain_core_hours,) in drawn


def test_the_text_says_that_it_is_an_estimate(points):
  text = as_text(list(points.values()))
  assert "not measured" in text
  assert "Error bar" in text


def test_the_command(tmp_path):
  result = subprocess.run(
    [
      *(sys.executable, "-m", "profiling.both_families"),
      *(f"--plot={tmp_path / 'both.png'}", f"--json={tmp_path / 'both.json'}"),
    ],
    cwd=ROOT,
    env=os.environ,
    capture_output=True,
    text=True,
    check=False,
  )
  assert result.returncode == 0, result.stderr
  assert len(json.loads((tmp_path / "both.json").read_text())) == 28
  with Image.open(tmp_path / "both.png") as picture:
    assert picture.size[0] > 300
