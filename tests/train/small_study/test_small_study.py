"""The stored runs are those that the plan asks for, and what is said of them is what they say."""

import csv
import json

import pytest

from nfnet.cost import count
from tests.repository import ROOT
from train.scaling.analysis import analyze
from train.scaling.analysis_plots import draw_finetuning_error
from train.scaling.checkpoint_choice import as_json, choose
from train.scaling.run_table import best_trials, read_runs
from train.small_study import PLANS, RUNS
from train.sweep.learning_rate_search import Finished, proposals
from train.sweep.plan import load_plan, make_trial

STUDY = "fashion_mnist"
DOCUMENTS = ROOT / "docs" / "small_study" / STUDY


@pytest.fixture(scope="module")
def plan():
  return load_plan(str(PLANS[STUDY]))


@pytest.fixture(scope="module")
def rows():
  lines = [line for line in RUNS[STUDY].read_text().splitlines() if not line.startswith("#")]
  return list(csv.DictReader(lines))


@pytest.fixture(scope="module")
def runs():
  return read_runs([RUNS[STUDY]]).runs


def test_four_networks_and_four_budgets(runs):
  settings = {(run.name, run.epochs) for run in best_trials(runs)}
  assert len({name for name, _ in settings}) == 4
  assert len({epochs for _, epochs in settings}) == 4
  assert len(settings) == 16


def test_every_row_is_a_trial_of_the_plan(plan, rows):
  for row in rows:
    trial = make_trial(plan, row["name"], float(row["epochs"]), float(row["learning_rate"]))
    cost = count(row["name"], num_classes=10, pixels=32)
    assert row["trial"] == trial.name
    assert int(row["parameters"]) == trial.parameters == cost.parameters
    assert int(row["compute_flops"]) == trial.compute_flops == 6 * cost.macs * trial.steps * 64


def test_the_search_for_rates_wants_nothing_more(plan, runs):
  finished = [
    Finished(cell=cell, learning_rate=run.learning_rate, loss=run.loss_nats)
    for run in runs
    for cell in plan.cells()
    if (cell.parameters, cell.epochs) == (run.parameters, run.epochs)
  ]
  assert len(finished) == len(runs)
  assert not proposals(plan.cells(), finished, start_learning_rate=plan.start_learning_rate)


def test_every_trial_was_fine_tuned(runs, rows):
  assert all(run.top1_error_percent is not None for run in runs)
  assert all(run.probe_squared_error is not None for run in runs)
  assert {row["seeds"] for row in rows} == {"2"}


def test_the_picture_has_the_rate_that_fine_tunes_best(runs):
  axes = draw_finetuning_error(analyze(read_runs([RUNS[STUDY]]), resamples=0, seed=0)).axes[0]
  drawn = {line.get_label(): list(line.get_ydata()) for line in axes.lines}
  for name in ("P0", "N0", "N1", "M0"):
    own = [run for run in runs if run.name == name]
    assert drawn[name] == [
      min(run.top1_error_percent for run in own if run.epochs == epochs) for epochs in (1, 2, 4, 8)
    ]


def test_the_stored_choice_is_that_of_the_runs(runs):
  stored = json.loads((DOCUMENTS / "choice.json").read_text())
  found = json.loads(json.dumps(as_json(choose(runs, ()))))
  assert found["law"]["by"] == stored["law"]["by"]
  assert found["law"]["exponents"] == pytest.approx(stored["law"]["exponents"])
  for one, other in zip(found["checks"], stored["checks"], strict=True):
    assert one == pytest.approx(other)
  assert [one["name"] for one in found["ranked"]] == [one["name"] for one in stored["ranked"]]
