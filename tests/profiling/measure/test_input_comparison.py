import os
import sys

import pytest

from nfnet.errors import UserError
from profiling.measure.input_comparison import cores_needed, measure, run_rounds, summarize


def run(seconds, cpu_seconds, images=100, cores=2):
  return {"images": images, "seconds": seconds, "cpu_seconds": cpu_seconds, "cores": cores}


MISSING = {"not_measured": "ModuleNotFoundError: No module named 'timm'"}


def test_speeds_are_a_core_and_ratios_within_a_round():
  rounds = [
    {
      "this project": run(0.1, 0.1),
      "tf.data": run(0.2, 0.3),
      "tf.data, antialiased": run(0.05, 0.05),
      "timm": MISSING,
      "Pillow": run(1.0, 1.0, cores=1),
    },
    # All are twice as slow, except for Pillow.
    {
      "this project": run(0.2, 0.2),
      "tf.data": run(0.4, 0.4),
      "tf.data, antialiased": run(0.1, 0.1),
      "timm": MISSING,
      "Pillow": run(1.0, 1.0, cores=1),
    },
  ]
  result = summarize(rounds)
  assert result["speeds"]["this project"] == {
    "images_per_cpu_second": [750, 500, 1000],
    "images_per_second_per_core": [375, 250, 500],
  }
  assert result["speeds"]["Pillow"]["images_per_second_per_core"] == [100, 100, 100]
  assert result["speeds"]["timm"] == MISSING
  # A pipeline of better quality is not a rival, however fast it is.
  assert result["best_rival"] == "tf.data"
  assert result["ratio_to_best_rival_by_cpu"] == pytest.approx([2.5, 2, 3])
  assert result["ratio_to_best_rival_by_clock"] == pytest.approx([2, 2, 2])


def test_what_failed_in_one_round_is_not_measured():
  rounds = [{"this project": run(1, 1), "Pillow": run(1, 1)}, {"this project": MISSING}]
  rounds[1]["Pillow"] = run(1, 1)
  result = summarize(rounds)
  assert result["speeds"]["this project"] == MISSING
  assert "best_rival" not in result


def test_a_host_needs_cores_for_four_chips():
  assert cores_needed(1800.0, 900.0) == 8


def test_rounds_rotate():
  order = []

  def measurement(name):
    def measured():
      order.append(name)
      return run(1, 1)

    return measured

  names = ["this project", "tf.data", "Pillow"]
  rounds = run_rounds({name: measurement(name) for name in names}, 3)
  assert order[::3] == names
  assert [list(one) for one in rounds] == [names] * 3


def test_a_missing_package_is_not_measured(tmp_path, monkeypatch):
  (tmp_path / "timm.py").write_text("raise ModuleNotFoundError('no timm here')")
  monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
  result = measure("timm", sys.executable, ["--images=x", "--cores=1"])
  assert result == {"not_measured": "ModuleNotFoundError: no timm here"}


def test_an_interpreter_that_is_none():
  with pytest.raises(UserError, match="--python=/nonexistent/python does not run"):
    measure("timm", "/nonexistent/python", [])
