"""Analyses of paper A's runs and of runs with known laws, and what is written of them."""

import dataclasses
import json
import time

import numpy as np
import pytest
from PIL import Image

from nfnet.errors import UserError
from tests.train.scaling.known_laws import joint_points
from train.published_runs import PAPER_A_FINETUNED, PAPER_A_NFNETS
from train.scaling.analysis import analyze
from train.scaling.analysis_json import as_json
from train.scaling.analysis_plots import write_plots
from train.scaling.analysis_text import as_text
from train.scaling.laws.law_set import FORMS, OPTIMA
from train.scaling.points import as_points, frontier
from train.scaling.run_table import best_trials, read_runs

PAPER_A = read_runs([PAPER_A_NFNETS, PAPER_A_FINETUNED])
FORM = {form.field: form for form in FORMS}


@pytest.fixture(scope="module")
def analysis():
  return analyze(PAPER_A, resamples=25, seed=0, budgets=[2e5, 1e6], hold_out_epochs=2)


@pytest.fixture(scope="module")
def held_out(analysis):
  return {prediction.short_label: prediction for prediction in analysis.held_out.predictions}


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


def test_paper_a_line(analysis):
  points, laws = analysis.bootstrap.points, analysis.bootstrap.laws
  best = frontier(points.compute, points.loss)
  assert best.sum() == 24
  slope, intercept = np.polyfit(np.log(points.compute[best]), np.log(points.loss[best]), 1)
  assert laws.frontier.exponent == pytest.approx(-slope)
  assert laws.frontier.coefficient == pytest.approx(np.exp(intercept))
  text = as_text(analysis)
  assert f"power law, frontier         24    {-slope:.4f} [" in text
  # As a log-log line should, it leaves less than 1 % of the loss.
  assert np.sqrt(np.mean(analysis.bootstrap.residuals(FORM["frontier"]) ** 2)) < 0.01


def test_paper_a_optimum(analysis):
  laws = analysis.bootstrap.laws
  for field in OPTIMA:
    optimum = getattr(laws, field)
    # "About 5k core-hours", read off a figure of budgets that are a factor of 2 apart.
    assert 5000 / 2 < optimum.one_epoch_compute < 5000 * 2
    # Both grow, and what an epoch costs times epochs is compute.
    assert optimum.size_exponent > 0
    cost_exponent = laws.cost.exponent * optimum.size_exponent
    # Networks are off the cost law by up to 15 % (F7), but not ever more so.
    assert cost_exponent + optimum.epochs_exponent == pytest.approx(1, abs=0.05)
  assert "paper A says of its runs       as epochs" in as_text(analysis)


def test_paper_a_has_the_outliers_of_the_interrupted_curve(analysis):
  assert analysis.judgment.by == "own curve"
  flagged = {
    (one.name, one.epochs)
    for one, flag in zip(analysis.runs, analysis.judgment.flagged, strict=True)
    if flag
  }
  # What the paper says of F7+: not smooth. No other network is flagged.
  assert flagged == {("F7+", 1), ("F7+", 4), ("F7+", 8)}
  assert as_text(analysis).count("OUTLIER: ") == 3


def test_paper_a_held_out(analysis, held_out):
  """The 4 and 8 epochs, from up to 2; what is printed is what simpler code gives."""
  points = as_points(best_trials(PAPER_A.runs))
  fitted, asked = points.take(points.epochs <= 2), points.take(points.epochs > 2)
  assert set(asked.epochs) == {4, 8}
  assert (analysis.held_out.fitted_runs, len(analysis.held_out.points)) == (24, 12)

  line = np.polyfit(np.log(fitted.compute), np.log(fitted.loss), 1)
  expected = np.exp(np.polyval(line, np.log(asked.compute)))
  assert held_out["all"].losses == pytest.approx(expected)
  last = [fitted.loss[(fitted.names == name) & (fitted.epochs == 2)][0] for name in asked.names]
  assert held_out["last loss"].losses.tolist() == last

  errors = expected - asked.loss
  percent = 100 * np.mean(np.abs(errors / asked.loss))
  assert f"{np.mean(np.abs(errors)):.3f} ({percent:.2f} %)" in as_text(analysis)
  json_form = as_json(analysis)["held_out"]["predictions"][0]
  assert json_form["mean_absolute_error_percent"] == pytest.approx(percent)
  assert json_form["loss_nats"] == pytest.approx(expected.tolist())


def test_paper_a_is_predicted_better_than_by_its_baselines(analysis, held_out):
  asked, on_frontier = analysis.held_out.points, analysis.held_out.on_frontier

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
  found = analyze(table, resamples=0, seed=0, hold_out_epochs=2)
  held_out = found.held_out
  last = held_out.predictions[-1]
  largest = held_out.points.parameters > 9e8
  assert np.isnan(last.losses[largest]).all()
  assert np.isfinite(last.losses[~largest]).all()
  assert "nan" not in as_text(found)


def test_few_runs_say_what_they_can():
  points = joint_points(sizes=np.array([1e8]), epochs=np.array([1.0, 2, 4]))
  text = as_text(analyze(as_table(points), resamples=30, seed=0))
  assert "power law, all runs  3" in text
  assert "No joint law: it needs 8 runs" in text
  assert "No compute-optimal size" in text
  assert "Outliers: too few runs to tell." in text


def test_flops_in_the_place_of_core_hours():
  points = joint_points(noise=0.003)
  flops = dataclasses.replace(points, compute=1e17 * points.compute)
  found = analyze(as_table(flops, compute_column="compute_flops"), resamples=0, seed=0)
  hours = analyze(as_table(points), resamples=0, seed=0)
  for field in ("frontier", "frontier_irreducible"):
    pair = [getattr(one.bootstrap.laws, field).exponent for one in (found, hours)]
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
    (
      {"hold_out_epochs": 8.0},
      r"--hold_out_epochs=8: no run has more epochs .*; give less than 8",
    ),
    ({"hold_out_epochs": 0.1}, r"at most --hold_out_epochs=0.1 have 0 different amounts"),
  ],
)
def test_invalid_values_are_one_line(changes, message):
  with pytest.raises(UserError, match=message) as caught:
    analyze(PAPER_A, resamples=0, seed=0, **changes)
  assert "\n" not in str(caught.value)


PAPER_A_LOSSES = read_runs([PAPER_A_NFNETS])


def with_losses(losses):
  """Returns paper A's pre-trained networks with other losses."""
  runs = zip(PAPER_A_LOSSES.runs, losses, strict=True)
  return dataclasses.replace(
    PAPER_A_LOSSES,
    runs=tuple(dataclasses.replace(run, loss_nats=float(loss)) for run, loss in runs),
  )


@pytest.mark.parametrize("spread", [0.0, 1e-12, 1e-5])
def test_losses_that_are_all_equal_are_refused(spread):
  losses = 2.5 * (1 + spread * np.random.default_rng(0).random(len(PAPER_A_LOSSES.runs)))
  for options in ({}, {"hold_out_epochs": 2}):
    with pytest.raises(UserError, match=r"runs with a loss all have a loss of 2\.5 nats; a law"):
      analyze(with_losses(losses), resamples=1000, seed=0, **options)


def test_equal_losses_of_the_runs_that_are_fitted_are_refused():
  losses = [2.5 if run.epochs <= 2 else 2.5 + run.epochs for run in PAPER_A_LOSSES.runs]
  with pytest.raises(UserError, match=r"at most --hold_out_epochs=2 all have a loss of 2\.5 nats"):
    analyze(with_losses(losses), resamples=0, seed=0, hold_out_epochs=2)


@pytest.mark.parametrize("kind", ["noise", "two values", "one differs", "rising", "huge", "tiny"])
def test_losses_without_a_law_do_not_take_long(kind):
  count = len(PAPER_A_LOSSES.runs)
  number = np.arange(count)
  losses = {
    "noise": 2 + 0.1 * np.random.default_rng(0).normal(size=count),
    "two values": np.where(number % 2, 2.0, 3.0),
    "one differs": np.where(number == 5, 2.0, 3.0),
    "rising": np.linspace(1, 3, count),
    "huge": 1e5 * (1 + 0.1 * np.random.default_rng(0).random(count)),
    "tiny": 1e-6 * np.geomspace(1, 1e6, count),
  }[kind]
  began_seconds = time.process_time()
  as_text(analyze(with_losses(losses), resamples=20, seed=0))
  # A thousand resamples take 50 times as long at most, and these include the first fits.
  assert time.process_time() - began_seconds < 5


def test_too_many_runs_are_refused():
  runs = tuple(
    dataclasses.replace(PAPER_A_LOSSES.runs[0], name=f"network {number}") for number in range(2_001)
  )
  with pytest.raises(UserError, match="2,001 runs with a loss, where 2,000 are the most"):
    analyze(dataclasses.replace(PAPER_A_LOSSES, runs=runs), resamples=0, seed=0)


def test_runs_without_a_loss_are_not_enough():
  with pytest.raises(UserError, match="runs with a loss have 0 different amounts of compute"):
    analyze(read_runs([PAPER_A_FINETUNED]), resamples=0, seed=0)


def test_the_plots(analysis, tmp_path):
  names = (
    "loss_against_compute",
    "finetuning_error_against_compute",
    "learning_rate",
    "optimal_size_and_epochs",
  )
  written = write_plots(str(tmp_path / "plots"), analysis)
  assert written == [tmp_path / "plots" / f"{name}.png" for name in names]
  for path in written:
    with Image.open(path) as image:
      assert image.size == (1200, 675)
      # Most colors of the six networks, or of both optima.
      assert len(image.convert("RGB").getcolors(1 << 20)) > 50


def test_plots_without_data_are_left_out(tmp_path):
  path = tmp_path / "runs.csv"
  path.write_text(
    "name,parameters,epochs,compute_flops,loss_nats\na,1,1,1,3\na,1,2,2,2\na,1,4,4,1.5\n"
  )
  write_plots(str(tmp_path), analyze(read_runs([path]), resamples=0, seed=0))
  assert [found.name for found in tmp_path.glob("*.png")] == ["loss_against_compute.png"]


def test_json_has_all_results(analysis):
  text = json.dumps(as_json(analysis))
  found = json.loads(text, parse_constant=lambda name: pytest.fail(name))
  assert found["compute_unit"] == "core-hours"
  assert (found["resamples"], found["confidence"]) == (25, 0.95)
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
