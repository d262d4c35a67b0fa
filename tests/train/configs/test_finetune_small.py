"""The stored runs of `finetune_small.py` are those of the page's commands, with the said scores."""

import collections
import csv
import dataclasses
import json
import re
import statistics

import pytest

from tests.docs.pages import read_page, shell_commands
from tests.repository import ROOT
from train.config.files import load_experiment
from train.config.json_conversion import from_json
from train.data.manifest import Manifest, RecordFile, Split, save_manifest

PAGE = ROOT / "docs" / "fine_tuning.md"
FOLDER = ROOT / "docs" / "fine_tuning"


@pytest.fixture(scope="module")
def stored():
  """Experiments by data set: EVEN, and ODD_N with N training images."""
  experiments = json.loads((FOLDER / "experiments.json").read_text())
  return {data: from_json(fields) for data, fields in experiments.items()}


@pytest.fixture(scope="module")
def rows():
  with (FOLDER / "results.csv").open(newline="") as file:
    return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def scores(rows):
  """Top-1 of the moving average for each seed, by data set, start and peak learning rate."""
  found = collections.defaultdict(list)
  for row in rows:
    setting = row["data"], row["start"], float(row["peak_learning_rate"])
    found[setting].append(float(row["top1_moving_average"]))
  return found


def test_the_runs_were_those_of_the_page(stored, tmp_path):
  """A change of `finetune_small.py` makes the stored runs those of another recipe."""
  pretraining, *others = commands()
  assert experiment_of(pretraining) == stored["EVEN"]
  for data in stored.keys() - {"EVEN"}:
    images = number_of_images(data)
    file = RecordFile(
      file="x.array_record", records=images, size_bytes=1_000 * images, sha256="0" * 64
    )
    splits = {"train": Split(records=images, record_files=(file,))}
    names = tuple("abcde")
    manifest = Manifest(class_names=names, labels_per_record_max=1, splits=splits)
    save_manifest(tmp_path, manifest)
    for arguments in others:
      assert experiment_of(arguments, data=tmp_path) == stored[data]


def test_the_rows_are_those_of_such_runs(stored, rows):
  for row in rows:
    experiment = stored[row["data"]]
    assert int(row["steps"]) == experiment.schedule.train_steps
  settings = ("data", "start", "peak_learning_rate", "seed")
  runs = [tuple(row[name] for name in settings) for row in rows]
  assert len(set(runs)) == len(runs)


def test_the_table_has_the_means_of_the_stored_runs(stored, scores):
  text = PAGE.read_text(encoding="utf-8")
  table = re.findall(r"^\| ([\d,]+) \| ([\d.]+) % \| ([\d.]+) % \| (\d+) \|$", text, re.MULTILINE)
  expected = []
  for data in sorted(stored.keys() - {"EVEN"}, key=number_of_images):
    rate = stored[data].optimizer.peak_learning_rate
    tuned, scratch = (scores[data, start, rate] for start in ("EVEN", "random"))
    assert len(tuned) == len(scratch)
    images = f"{number_of_images(data):,}"
    expected.append((images, percent(tuned), percent(scratch), str(len(tuned))))
  assert table == expected


def test_the_other_figures_are_those_of_the_stored_runs(stored, scores):
  text = " ".join(PAGE.read_text(encoding="utf-8").split())
  rate = stored["EVEN"].optimizer.peak_learning_rate
  assert f"({percent(scores['EVEN', 'random', rate])} % there)" in text
  high, low = (percent(scores["ODD_1000", "EVEN", other]) for other in (0.1, 0.00625))
  assert f"of 0.1 instead of 0.025 gave {high} %, and 0.00625 gave {low} %" in text
  some, many = (percent(scores["ODD_100", "EVEN", other]) for other in (0.025, 0.1))
  assert f"0.025 and 0.1 instead of 0.00625 gave {some} % and {many} %" in text


def commands():
  """Returns the arguments of the page's three commands: pre-training, fine-tuning, from scratch."""
  (block,) = (one for one in read_page(PAGE) if "--workdir=EVEN_RUN" in one.text)
  assert block.kind == "bash long"
  return [words[3:] for words in shell_commands(block.text)]


def experiment_of(arguments, data="ODD"):
  """Returns what a command trains on another data set, without the paths of data and weights."""
  (config,) = (one.removeprefix("--config=") for one in arguments if one.startswith("--config="))
  overrides = [one for one in arguments if one.startswith("--config.")]
  experiment = load_experiment(str(ROOT / config.replace("data=ODD", f"data={data}")), overrides)
  without_path = dataclasses.replace(experiment.data, path="")
  return dataclasses.replace(experiment, data=without_path, initial_weights=None)


def number_of_images(data):
  return int(data.removeprefix("ODD_"))


def percent(values):
  return f"{100 * statistics.mean(values):.1f}"
