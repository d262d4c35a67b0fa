import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from nfnet.errors import UserError
from tests.repository import ROOT
from tests.train.scaling.scaling_runs import JOINT, joint_points
from train.published_runs import PAPER_A_FINETUNED, PAPER_A_NFNETS
from train.scaling.findings import as_points, find
from train.scaling.fits import Points, frontier
from train.scaling.run_table import best_trials, read_runs
from train.scaling.study import FORMS, OPTIMA, study
from train.scaling.text import as_text
from train.scaling_law import as_json, run

PAPER_A = read_runs([PAPER_A_NFNETS, PAPER_A_FINETUNED])
FORM = {form.field: form for form in FORMS}


@pytest.fixture(scope="module")
def findings():
  return find(PAPER_A, resamples=25, seed=0, hold_out_epochs=2)


@pytest.fixture(scope="module")
def held_out(findings):
  return {prediction.short_label: prediction for prediction in findings.held_out.predictions}


def power_law_points(seed, *, noise=0.01):
  """20 runs at four amounts of compute, which are too few for all but a power law."""
  compute = np.repeat([1e3, 1e4, 1e5, 1e6], 5)
  factors = np.exp(noise * np.random.default_rng(seed).normal(size=20))
  return Points(
    names=np.full(20, "one"),
    parameters=np.full(20, 1e8),
    epochs=compute / 1e3,
    compute=compute,
    loss=4 * compute**-0.05 * factors,
  )


def test_intervals_cover_what_they_should():
  studies = [study(power_law_points(seed), resamples=100, seed=seed) for seed in range(40)]
  intervals = np.array([one.interval(lambda laws: laws.all_runs.exponent) for one in studies])
  covered = (intervals[:, 0] <= 0.05) & (intervals[:, 1] >= 0.05)
  # Of 20 runs percentiles cover 92 % (simulated): 32 or fewer of 40 would be 1 in 100.
  assert covered.sum() >= 33
  # The standard error is noise / |log(compute) - mean|.
  compute = np.log(power_law_points(0).compute)
  width = 2 * 1.96 * 0.01 / np.sqrt(np.sum((compute - compute.mean()) ** 2))
  assert np.mean(intervals[:, 1] - intervals[:, 0]) == pytest.approx(width, rel=0.15)

  new = 4 * 4e6**-0.05 * np.exp(0.01 * np.random.default_rng(99).normal(size=len(studies)))
  predicted = [one.prediction(FORM["all_runs"], 4e6)[1] for one in studies]
  inside = [low <= loss <= high for loss, (low, high) in zip(new, predicted, strict=True)]
  assert sum(inside) >= 33
  # Mostly the noise of the new run, so not much wider than that alone and not narrower.
  widths = [high / low - 1 for low, high in predicted]
  assert 0.035 < np.mean(widths) < 0.06


def test_intervals_hold_the_laws_that_made_the_runs():
  done = study(joint_points(noise=0.003), resamples=60, seed=0)
  for field in ("irreducible_loss", "size_exponent", "epochs_exponent"):
    low, high = done.interval(lambda laws, f=field: getattr(laws.joint, f, None))
    assert low < getattr(JOINT, field) < high
    assert high - low < 0.8 * getattr(JOINT, field)
  # N ~ C^(b / (a + b)) and D ~ C^(a / (a + b)), as an epoch costs as much as there are parameters.
  low, high = done.interval(lambda laws: laws.joint_optimum and laws.joint_optimum.size_exponent)
  assert low < 0.3 / 0.8 < high
  low, high = done.interval(lambda laws: laws.joint_optimum and laws.joint_optimum.epochs_exponent)
  assert low < 0.5 / 0.8 < high
  estimate, (low, high) = done.prediction(FORM["joint"], 4e5)
  optimum = done.laws.joint_optimum
  assert estimate == done.laws.joint.loss(optimum.parameters(4e5), optimum.epochs(4e5))
  assert low < estimate < high


def test_the_seed_decides():
  points = power_law_points(0)
  first, again, other = (study(points, resamples=30, seed=seed) for seed in (0, 0, 1))
  form = FORM["all_runs"]
  intervals = [one.interval(lambda laws: laws.all_runs.exponent) for one in (first, again, other)]
  assert intervals[0] == intervals[1] != intervals[2]
  assert first.prediction(form, 1e7) == again.prediction(form, 1e7)
  assert first.prediction(form, 1e7) != other.prediction(form, 1e7)


def test_too_few_resamples_give_no_interval():
  done = study(power_law_points(0), resamples=19, seed=0)
  assert done.interval(lambda laws: laws.all_runs.exponent) is None
  assert done.prediction(FORM["all_runs"], 1e7)[1] is None


def test_paper_a_line(findings):
  points, laws = findings.study.points, findings.study.laws
  best = frontier(points.compute, points.loss)
  assert best.sum() == 24
  slope, intercept = np.polyfit(np.log(points.compute[best]), np.log(points.loss[best]), 1)
  assert laws.frontier.exponent == pytest.approx(-slope)
  assert laws.frontier.coefficient == pytest.approx(np.exp(intercept))
  text = as_text(findings)
  assert f"power law, frontier         24    {-slope:.4f} [" in text
  # As a log-log line should, it leaves less than 1 % of the loss.
  assert np.sqrt(np.mean(findings.study.residuals(FORM["frontier"]) ** 2)) < 0.01


def test_paper_a_optimum(findings):
  laws = findings.study.laws
  for field in OPTIMA:
    optimum = getattr(laws, field)
    # "About 5k core-hours", read off a figure of budgets that are a factor of 2 apart.
    assert 5000 / 2 < optimum.one_epoch_compute < 5000 * 2
    # Both grow, and what an epoch costs times epochs is compute.
    assert optimum.size_exponent > 0
    cost_exponent = laws.cost.exponent * optimum.size_exponent
    # Networks are off the cost law by up to 15 % (F7), but not ever more so.
    assert cost_exponent + optimum.epochs_exponent == pytest.approx(1, abs=0.05)
  assert "paper A says of its runs       as epochs" in as_text(findings)


def test_paper_a_has_the_outliers_of_the_interrupted_curve(findings):
  assert findings.judgment.by == "own curve"
  flagged = {
    (one.name, one.epochs)
    for one, flag in zip(findings.runs, findings.judgment.flagged, strict=True)
    if flag
  }
  # What the paper says of F7+: not smooth. No other network is flagged.
  assert flagged == {("F7+", 1), ("F7+", 4), ("F7+", 8)}
  assert as_text(findings).count("OUTLIER: ") == 3


def test_paper_a_held_out(findings, held_out):
  """The 4 and 8 epochs, from up to 2; what is printed is what simpler code gives."""
  points = as_points(best_trials(PAPER_A.runs))
  fitted, asked = points.take(points.epochs <= 2), points.take(points.epochs > 2)
  assert set(asked.epochs) == {4, 8}
  assert (findings.held_out.fitted_runs, len(findings.held_out.points)) == (24, 12)

  line = np.polyfit(np.log(fitted.compute), np.log(fitted.loss), 1)
  expected = np.exp(np.polyval(line, np.log(asked.compute)))
  assert held_out["all"].losses == pytest.approx(expected)
  last = [fitted.loss[(fitted.names == name) & (fitted.epochs == 2)][0] for name in asked.names]
  assert held_out["last loss"].losses.tolist() == last

  errors = expected - asked.loss
  percent = 100 * np.mean(np.abs(errors / asked.loss))
  assert f"{np.mean(np.abs(errors)):.3f} ({percent:.2f} %)" in as_text(findings)
  json_form = as_json(findings)["held_out"]["predictions"][0]
  assert json_form["mean_absolute_error_percent"] == pytest.approx(percent)
  assert json_form["loss_nats"] == pytest.approx(expected.tolist())


def test_paper_a_is_predicted_better_than_by_its_baselines(findings, held_out):
  asked, on_frontier = findings.held_out.points, findings.held_out.on_frontier

  def error_percent(label, rows):
    relative = held_out[label].errors(asked) / asked.loss
    return 100 * np.mean(np.abs(relative[rows]))

  everywhere = np.full(len(asked), True)
  # Losses are read to 0.1 %, and laws leave 0.7 to 1.1 %; nothing predicts better than it fits.
  for label in ("all", "all + E", "joint"):
    assert error_percent(label, everywhere) < 1.5
    assert error_percent(label, everywhere) < error_percent("own line", everywhere)
  for label in ("all", "all + E", "frontier", "frontier + E", "joint"):
    assert error_percent(label, on_frontier) < 1.0
    assert error_percent(label, on_frontier) < error_percent("own line", on_frontier)
  assert error_percent("last loss", everywhere) > 3
  # 95 % each, though their errors go together.
  assert held_out["joint"].inside(asked).sum() >= 8
  assert held_out["all"].inside(asked).sum() >= 8


def test_a_network_that_was_not_fitted_has_no_baseline():
  points = joint_points(noise=0.003)
  few = (points.parameters < 9e8) | (points.epochs > 2)
  table = as_table(points.take(few))
  found = find(table, resamples=0, seed=0, hold_out_epochs=2)
  held_out = found.held_out
  last = held_out.predictions[-1]
  largest = held_out.points.parameters > 9e8
  assert np.isnan(last.losses[largest]).all()
  assert np.isfinite(last.losses[~largest]).all()
  assert "nan" not in as_text(found)


def as_table(points, **changes):
  """A table, as if read."""
  one = PAPER_A.runs[0]
  runs = tuple(
    dataclasses.replace(
      one,
      name=str(points.names[index]),
      parameters=points.parameters[index],
      epochs=points.epochs[index],
      compute=points.compute[index],
      loss_nats=points.loss[index],
    )
    for index in range(len(points))
  )
  return dataclasses.replace(PAPER_A, **{"runs": runs, **changes})


def test_few_runs_say_what_they_can():
  points = joint_points(sizes=np.array([1e8]), epochs=np.array([1.0, 2, 4]))
  text = as_text(find(as_table(points), resamples=30, seed=0))
  assert "power law, all runs  3" in text
  assert "No joint law: it needs 8 runs" in text
  assert "No compute-optimal size" in text
  assert "Outliers: too few runs to tell." in text


def test_flops_in_the_place_of_core_hours():
  points = joint_points(noise=0.003)
  flops = dataclasses.replace(points, compute=1e17 * points.compute)
  found = find(as_table(flops, compute_column="compute_flops"), resamples=0, seed=0)
  hours = find(as_table(points), resamples=0, seed=0)
  for field in ("frontier", "frontier_irreducible"):
    pair = [getattr(one.study.laws, field).exponent for one in (found, hours)]
    assert pair[0] == pytest.approx(pair[1], rel=1e-3)
  assert found.budgets[0] == pytest.approx(4e17 * points.compute.max())
  text = as_text(found)
  assert "compute C in FLOP" in text
  # A statement about core-hours.
  assert "paper A says" not in text


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"budgets": [0.0]}, r"--predict_compute=0: must be a number above 0"),
    ({"budgets": [float("nan")]}, r"--predict_compute=nan"),
    ({"hold_out_epochs": 8.0}, r"--hold_out_epochs=8: no run has more to predict; the most is 8"),
    ({"hold_out_epochs": 0.1}, r"at most --hold_out_epochs=0.1 have 0 different amounts"),
  ],
)
def test_values_that_make_no_sense_are_one_line(changes, message):
  with pytest.raises(UserError, match=message) as caught:
    find(PAPER_A, resamples=0, seed=0, **changes)
  assert "\n" not in str(caught.value)


def test_runs_without_a_loss_are_not_enough():
  with pytest.raises(UserError, match="runs with a loss have 0 different amounts of compute"):
    run([PAPER_A_FINETUNED])


def test_writes_all_that_was_found(tmp_path):
  text = run(
    [PAPER_A_NFNETS, PAPER_A_FINETUNED],
    budgets=[2e5, 1e6],
    resamples=20,
    hold_out_epochs=2,
    json_path=str(tmp_path / "found.json"),
    plots_folder=str(tmp_path / "plots"),
  )
  names = (
    "loss_against_compute",
    "finetuning_error_against_compute",
    "learning_rate",
    "optimal_size_and_epochs",
  )
  for name in names:
    path = tmp_path / "plots" / f"{name}.png"
    assert f"picture: {path}" in text
    with Image.open(path) as image:
      assert image.size == (1200, 675)
      # Most colors of the six networks, or of both optima.
      assert len(image.convert("RGB").getcolors(1 << 20)) > 50
  found = json.loads(
    (tmp_path / "found.json").read_text(), parse_constant=lambda name: pytest.fail(name)
  )
  assert found["compute_unit"] == "core-hours"
  assert (found["resamples"], found["confidence"]) == (20, 0.95)
  assert len(found["runs"]) == 36
  assert sum(one["outlier"] is not None for one in found["runs"]) == 3
  assert [one["compute"] for one in found["predictions"]] == [2e5, 1e6]
  assert set(found["laws"]) == {field.field for field in FORMS} | {*OPTIMA, "cost"}
  exponent = found["laws"]["frontier"]["exponent"]
  assert exponent["interval"][0] < exponent["estimate"] < exponent["interval"][1]
  assert found["laws"]["frontier"]["irreducible_loss"] == {"estimate": 0.0, "interval": None}
  for prediction in found["predictions"]:
    for form in FORMS:
      loss = prediction["loss_nats"][form.field]
      assert loss["interval"][0] < loss["estimate"] < loss["interval"][1]
  assert len(found["held_out"]["predictions"]) == len(FORMS) + 2


def test_pictures_without_data_are_left_out(tmp_path):
  path = tmp_path / "runs.csv"
  path.write_text(
    "name,parameters,epochs,compute_flops,loss_nats\na,1,1,1,3\na,1,2,2,2\na,1,4,4,1.5\n"
  )
  run([path], resamples=20, plots_folder=str(tmp_path))
  assert [found.name for found in tmp_path.glob("*.png")] == ["loss_against_compute.png"]


@pytest.mark.parametrize(
  ("keyword", "flag"), [("json_path", "json"), ("plots_folder", "plots")], ids=str
)
def test_results_that_cannot_be_written_are_named(tmp_path, keyword, flag):
  (tmp_path / "file").write_text("")
  path = str(tmp_path / "file" / "below")
  with pytest.raises(UserError, match=rf"--{flag}=.*below cannot be written"):
    run([PAPER_A_NFNETS], resamples=0, **{keyword: path})


def command(*arguments):
  return subprocess.run(
    [sys.executable, "-m", "train.scaling_law", *arguments],
    cwd=ROOT,
    env={**os.environ, "PYTHONPATH": str(ROOT)},
    capture_output=True,
    text=True,
    timeout=120,
    check=False,
  )


def test_command():
  runs = "--runs=train/published_runs/paper_a_nfnets.csv"
  result = command(runs, "--resamples=0", "--predict_compute=3e5", "--hold_out_epochs=2")
  assert result.returncode == 0, result.stderr
  assert "loss at C = 300,000" in result.stdout
  assert "Held out: 24 runs of at most 2 epochs fitted, the other 12 predicted" in result.stdout
  assert result.stderr == ""


def test_command_names_what_is_wrong():
  result = command("--runs=nowhere.csv")
  assert result.returncode == 2
  assert result.stderr.startswith("error: --runs=nowhere.csv cannot be read: ")
  assert len(result.stderr.splitlines()) == 1
