"""The stored runs are those that the plans ask for, and what is said of them is what they say."""

import csv
import itertools
import json

import pytest

from nfnet.cost import count
from tests.repository import ROOT
from train.data.manifest import Manifest, RecordFile, Split, save_manifest
from train.scaling.analysis import analyze
from train.scaling.analysis_json import as_json as laws_as_json
from train.scaling.analysis_plots import draw_finetuning_error
from train.scaling.checkpoint_choice import as_json, choose
from train.scaling.run_table import best_trials, read_runs
from train.small_study import PLANS, RUNS
from train.sweep.learning_rate_search import Finished, proposals
from train.sweep.plan import load_plan, make_trial

DOCUMENTS = ROOT / "docs" / "small_study"
BY_DATA = {
  "fashion_mnist": ["fashion_mnist"],
  "cifar10": [name for name in RUNS if name.startswith("cifar10")],
}
"""Names of the tables by their images, as docs/small_study is divided."""

parametrize_studies = pytest.mark.parametrize("study", sorted(RUNS))
parametrize_data = pytest.mark.parametrize("data", sorted(BY_DATA))


@pytest.fixture
def plan(study, tmp_path, monkeypatch):
  """The plan of a study, read where its configuration and its data are."""
  if study.startswith("cifar10"):
    # Of the data, a plan needs the manifest.
    folder = tmp_path / "CIFAR10"
    folder.mkdir()
    save_manifest(
      folder,
      Manifest(
        class_names=tuple(f"class {index}" for index in range(10)),
        labels_per_record_max=1,
        splits={"train": _split(50_000), "validation": _split(10_000)},
      ),
    )
    monkeypatch.chdir(tmp_path)
  else:
    monkeypatch.chdir(ROOT)
  return load_plan(str(PLANS[study]))


def _split(records):
  file = RecordFile(
    file="a.array_record", records=records, size_bytes=1_000 * records, sha256="0" * 64
  )
  return Split(records=records, record_files=(file,))


def _rows(study):
  lines = [line for line in RUNS[study].read_text().splitlines() if not line.startswith("#")]
  return list(csv.DictReader(lines))


def _runs(*studies):
  return read_runs([RUNS[study] for study in studies]).runs


def test_all_tables_belong_to_some_data():
  assert sorted(PLANS) == sorted(RUNS) == sorted(itertools.chain(*BY_DATA.values()))


@parametrize_studies
def test_four_networks_and_four_budgets(study):
  settings = {(run.name, run.epochs) for run in best_trials(_runs(study))}
  assert len({name for name, _ in settings}) == 4
  assert len({epochs for _, epochs in settings}) == 4
  assert len(settings) == 16


@parametrize_studies
def test_every_row_is_a_trial_of_the_plan(study, plan):
  for row in _rows(study):
    trial = make_trial(plan, row["name"], float(row["epochs"]), float(row["learning_rate"]))
    cost = count(row["name"], num_classes=10, pixels=32)
    assert row["trial"] == trial.name
    assert int(row["parameters"]) == trial.parameters == cost.parameters
    assert int(row["compute_flops"]) == trial.compute_flops == 6 * cost.macs * trial.steps * 64


@parametrize_studies
def test_the_search_for_rates_wants_nothing_more(study, plan):
  runs, cells = _runs(study), plan.cells()
  finished = [
    Finished(cell=cell, learning_rate=run.learning_rate, loss=run.loss_nats)
    for run in runs
    for cell in cells
    if (cell.parameters, cell.epochs) == (run.parameters, run.epochs)
  ]
  assert len(finished) == len(runs)
  assert not proposals(cells, finished, start_learning_rate=plan.start_learning_rate)


@parametrize_studies
def test_every_trial_was_fine_tuned(study):
  runs = _runs(study)
  assert all(run.top1_error_percent is not None for run in runs)
  assert all(run.probe_squared_error is not None for run in runs)
  assert {row["seeds"] for row in _rows(study)} == {"2"}


def test_the_picture_has_the_rate_that_fine_tunes_best():
  runs = _runs("fashion_mnist")
  table = read_runs([RUNS["fashion_mnist"]])
  axes = draw_finetuning_error(analyze(table, resamples=0, seed=0)).axes[0]
  drawn = {line.get_label(): list(line.get_ydata()) for line in axes.lines}
  for name in ("P0", "N0", "N1", "M0"):
    own = [run for run in runs if run.name == name]
    assert drawn[name] == [
      min(run.top1_error_percent for run in own if run.epochs == epochs) for epochs in (1, 2, 4, 8)
    ]


@parametrize_data
def test_the_stored_choice_is_that_of_the_runs(data):
  stored = json.loads((DOCUMENTS / data / "choice.json").read_text())
  found = json.loads(json.dumps(as_json(choose(_runs(*BY_DATA[data]), ()))))
  assert found["law"]["by"] == stored["law"]["by"]
  assert found["law"]["exponents"] == pytest.approx(stored["law"]["exponents"])
  for one, other in zip(found["checks"], stored["checks"], strict=True):
    assert one == pytest.approx(other)
  assert [one["name"] for one in found["ranked"]] == [one["name"] for one in stored["ranked"]]


@parametrize_data
def test_the_stored_laws_are_those_of_the_runs(data):
  stored = json.loads((DOCUMENTS / data / "laws.json").read_text())
  table = read_runs([RUNS[study] for study in BY_DATA[data]])
  up_to = stored["held_out"]["fitted_up_to_epochs"]
  found = laws_as_json(analyze(table, resamples=0, seed=0, hold_out_epochs=up_to))
  assert found["laws"].keys() == stored["laws"].keys()
  for law, quantities in stored["laws"].items():
    for quantity, value in quantities.items():
      estimate = found["laws"][law][quantity]["estimate"]
      assert estimate == pytest.approx(value["estimate"], rel=1e-3, abs=1e-6), (law, quantity)
  for one, other in zip(
    found["held_out"]["predictions"], stored["held_out"]["predictions"], strict=True
  ):
    assert one["label"] == other["label"]
    assert one["loss_nats"] == pytest.approx(other["loss_nats"], rel=1e-3)
