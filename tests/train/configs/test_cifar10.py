"""The stored run of `cifar10.py` is a run of this configuration, with the accuracy that is said."""

import ast
import json

import pytest

from tests.repository import ROOT
from train.config.files import load_experiment
from train.config.json_conversion import from_json
from train.step.schedule import learning_rate_schedule

CONFIGURATION = ROOT / "train" / "configs" / "cifar10.py"
FOLDER = ROOT / "docs" / "cifar10"
TRAIN_IMAGES = 50_000


@pytest.fixture(scope="module")
def records():
  lines = (FOLDER / "metrics.jsonl").read_text().splitlines()
  return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def experiment():
  return load_experiment(str(CONFIGURATION))


def test_the_run_is_one_of_the_configuration(experiment):
  """The stored configuration is the one in the run's checkpoint, without the path of the data."""
  stored = from_json(json.loads((FOLDER / "experiment.json").read_text()))
  assert stored == experiment


def test_the_records_are_of_such_a_run(records, experiment):
  rate = learning_rate_schedule(experiment, TRAIN_IMAGES)
  trained = [record for record in records if record["kind"] == "train"]
  assert trained[-1]["step"] == experiment.schedule.train_steps
  for record in trained:
    # The last step before the record, counted from 0.
    expected = float(rate(record["step"] - 1))
    assert record["learning_rate"] == pytest.approx(expected, rel=1e-4, abs=1e-9)


def test_the_curve_ends_with_the_stored_scores(records):
  *_, last = (record for record in records if record["kind"] == "evaluation" and record["ema"])
  (score,) = _moving_average()
  assert (last["loss"], last["top1"]) == (score["loss"], score["top1"])


def test_the_accuracy_is_what_is_said():
  (score,) = _moving_average()
  accuracy = f"{score['top1']:.1%}".replace("%", " % top-1")
  docstring = ast.get_docstring(ast.parse(CONFIGURATION.read_text()))
  assert accuracy in docstring
  assert accuracy in (ROOT / "docs" / "cifar10.md").read_text()


def _moving_average():
  scores = json.loads((FOLDER / "scores.json").read_text())
  return [score for score in scores["evaluations"] if score["network"] == "moving average"]
