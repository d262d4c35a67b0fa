"""The commands, run as a person runs them: what they print, and how they end."""

import csv
import json
import os
import shutil
import statistics

import pytest

from nfnet.initialization import initial_parameters
from nfnet.model import NFNet
from nfnet.weights.haiku import save_haiku
from tests import commands
from tests.quick_compilation import XLA_FLAGS
from tests.train.conftest import HELD_OUT_DIGITS, write_digits
from tests.train.small_network import SMALL, TINY

CONFIG = "tests/train/small_network.py"
SHORT = (
  "--config.schedule.train_epochs=none",
  "--config.schedule.train_steps=4",
  "--config.optimizer.warmup_steps=1",
  "--config.schedule.log_every_steps=2",
  "--config.schedule.checkpoint_every_steps=2",
  "--config.data.batch_size=16",
)


def run(module, *arguments, **streams):
  # One device, as on a laptop.
  one_device = {"XLA_FLAGS": XLA_FLAGS}
  return commands.run(
    "tests.train.small_network", module, *arguments, environment=one_device, **streams
  )


def assert_one_line_error(result, *words):
  assert result.returncode == 2, result.stderr
  lines = result.stderr.strip().splitlines()
  assert len(lines) == 1, result.stderr
  assert lines[0].startswith("error: ")
  for word in words:
    assert word in lines[0], lines[0]


@pytest.fixture(scope="module")
def pretrained(digits, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("runs") / "pretrained"
  result = run(
    "train.pretrain",
    f"--config={CONFIG}",
    f"--workdir={workdir}",
    f"--config.data.path={digits}",
    *SHORT,
  )
  assert result.returncode == 0, result.stderr
  return workdir, result


def test_pretraining_shows_its_progress(pretrained):
  workdir, result = pretrained
  assert "step 4/4  loss " in result.stdout
  assert "images/s  waiting for data" in result.stdout
  assert "evaluation at step 4 (moving average): loss " in result.stdout
  assert "held-out top-1, moving average" in result.stdout
  assert f"{workdir}/plots/loss.png" in result.stdout
  assert result.stderr == ""


def test_fine_tuning_and_evaluation(pretrained, digits, tmp_path):
  workdir = tmp_path / "pretrained"
  shutil.copytree(pretrained[0], workdir)
  command = (
    "train.finetune",
    f"--config={CONFIG}",
    f"--workdir={tmp_path / 'finetuned'}",
    f"--config.data.path={digits}",
    f"--config.initial_weights={workdir}",
    *SHORT,
    "--config.data.train_pixels=20",
    "--config.data.evaluation_pixels=24",
    "--config.loss.class_weights=balanced",
  )
  result = run(*command)
  assert result.returncode == 0, result.stderr
  # Going on needs the checkpoint only.
  shutil.rmtree(workdir)
  result = run(*command)
  assert result.returncode == 0, result.stderr
  assert "resuming after step 4" in result.stdout
  scores = tmp_path / "scores.json"
  result = run(
    "train.evaluate",
    f"--workdir={tmp_path / 'finetuned'}",
    "--pixels=16,24",
    "--worst_classes=3",
    f"--json={scores}",
    f"--confusion_csv={tmp_path / 'confusion.csv'}",
    f"--confusion_plot={tmp_path / 'confusion.png'}",
  )
  assert result.returncode == 0, result.stderr
  rows = [line.split() for line in result.stdout.splitlines()]
  for network in (["moving", "average"], ["parameters"]):
    for pixels in ("16", "24"):
      assert any(
        row[: len(network) + 2] == [*network, pixels, str(HELD_OUT_DIGITS)] for row in rows
      )
  assert "lowest accuracy (" in result.stdout
  assert "most confused (" in result.stdout
  assert "means over 10 classes with images (macro); classes matched by name" in result.stdout
  evaluations = json.loads(scores.read_text())["evaluations"]
  assert [(one["network"], one["pixels"]) for one in evaluations] == [
    ("moving average", 16),
    ("moving average", 24),
    ("parameters", 16),
    ("parameters", 24),
  ]
  for one in evaluations:
    hits = sum(digit["top1"] * digit["examples"] for digit in one["classes"])
    assert hits / HELD_OUT_DIGITS == pytest.approx(one["top1"])
    assert 0 <= one["calibration_error"] <= 1
    for macro, of_class in (("macro_precision", "precision"), ("macro_f1", "f1")):
      mean = statistics.mean(digit[of_class] for digit in one["classes"])
      assert one[macro] == pytest.approx(mean)
  with (tmp_path / "confusion.csv").open() as file:
    header, *matrix = csv.reader(file)
  best = max(evaluations, key=lambda one: one["top1"])
  hits = sum(int(row[header.index(row[0])]) for row in matrix)
  assert hits == round(best["top1"] * HELD_OUT_DIGITS)
  assert sum(int(cell) for row in matrix for cell in row[1:]) == HELD_OUT_DIGITS
  assert (tmp_path / "confusion.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_own_photographs_are_fine_tuned_for_fewer_steps(pretrained, digits, tmp_path):
  result = run(
    "train.finetune",
    f"--config=train/configs/finetune_small.py:data={digits},variant={TINY.name}",
    f"--workdir={tmp_path / 'run'}",
    f"--config.initial_weights={pretrained[0]}",
    "--config.schedule.train_steps=2",
    "--config.optimizer.warmup_steps=1",
    "--config.loss.class_weights=balanced",
  )
  assert result.returncode == 0, result.stderr
  assert "fine-tuning NFNet-tiny on 1,000 images" in result.stdout
  assert "2 steps of 64" in result.stdout
  assert "evaluation at step 2 (moving average): loss " in result.stdout


@pytest.mark.slow
def test_own_photographs_are_fine_tuned_without_further_values(pretrained, tmp_path):
  data = tmp_path / "digits"
  write_digits(data, train_images=50, held_out=32)
  result = run(
    "train.finetune",
    f"--config=train/configs/finetune_small.py:data={data},variant={TINY.name}",
    f"--workdir={tmp_path / 'run'}",
    f"--config.initial_weights={pretrained[0]}",
  )
  assert result.returncode == 0, result.stderr
  assert "fine-tuning NFNet-tiny on 50 images" in result.stdout
  assert "500 steps of 16" in result.stdout
  assert "evaluation at step 500 (moving average): loss " in result.stdout


def test_the_advice_about_a_changed_rate_can_be_followed(pretrained, digits, tmp_path):
  shutil.copytree(pretrained[0], tmp_path / "run")
  shutil.rmtree(tmp_path / "run" / "checkpoints" / "4")
  command = (
    "train.pretrain",
    f"--config={CONFIG}",
    f"--workdir={tmp_path / 'run'}",
    f"--config.data.path={digits}",
    *SHORT,
    "--config.optimizer.peak_learning_rate=0.01",
  )
  result = run(*command)
  assert_one_line_error(result, "--accept_changes=optimizer.peak_learning_rate")
  result = run(*command, result.stderr.split()[-1])
  assert result.returncode == 0, result.stderr
  assert "resuming after step 2" in result.stdout
  assert "resumed after step 2 with optimizer.peak_learning_rate=0.01" in result.stdout


@pytest.mark.parametrize(
  "sink", ["/dev/full", pytest.param("a closed pipe", marks=pytest.mark.slow)]
)
def test_training_goes_on_without_a_reader(pretrained, digits, tmp_path, sink):
  shutil.copytree(pretrained[0], tmp_path / "run")
  shutil.rmtree(tmp_path / "run" / "checkpoints" / "4")
  if sink == "/dev/full":
    output = os.open(sink, os.O_WRONLY)
  else:
    reader, output = os.pipe()
    os.close(reader)
  try:
    result = run(
      "train.pretrain",
      f"--config={CONFIG}",
      f"--workdir={tmp_path / 'run'}",
      f"--config.data.path={digits}",
      *SHORT,
      stdout=output,
    )
  finally:
    os.close(output)
  assert result.returncode == 0, result.stderr
  lost = "standard output cannot be written: No space left on device; all files are complete\n"
  assert result.stderr == (lost if sink == "/dev/full" else "")
  lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
  records = [json.loads(line) for line in lines]
  assert [record["step"] for record in records if record["kind"] == "train"] == [2, 4]
  assert (tmp_path / "run" / "checkpoints" / "4").is_dir()


def test_changes_that_no_run_can_take_are_refused():
  result = run("train.pretrain", "--config=x", "--workdir=x", "--accept_changes=optimizer.momentum")
  assert_one_line_error(result, "--accept_changes=optimizer.momentum", "may be changed")


def test_pixels_that_are_no_numbers():
  result = run("train.evaluate", "--workdir=nowhere", "--pixels=32;48")
  assert_one_line_error(result, "--pixels=32;48", "256,320")


@pytest.mark.parametrize(
  ("arguments", "words"),
  [
    ([], ["--workdir", "--weights and --data"]),
    (["--weights=x"], ["--weights=x", "--data=DIR"]),
    (["--workdir=x", "--config=y"], ["--config belongs to --weights"]),
    (["--weights=nowhere.npz", "--data=y"], ["nowhere.npz"]),
  ],
)
def test_evaluation_says_what_it_needs(arguments, words):
  assert_one_line_error(run("train.evaluate", *arguments), *words)


@pytest.mark.parametrize("module", ["train.pretrain", "train.finetune"])
def test_missing_arguments(module):
  result = run(module, f"--config={CONFIG}")
  assert_one_line_error(result, "workdir")


def test_unknown_field_names_the_nearest(tmp_path):
  result = run(
    "train.pretrain",
    f"--config={CONFIG}",
    f"--workdir={tmp_path}",
    "--config.optimizer.peak_learning_rat=1",
  )
  assert_one_line_error(result, "peak_learning_rat;", "optimizer.peak_learning_rate")


def test_weights_of_another_variant(digits, small_networks, tmp_path):
  weights = tmp_path / "other.npz"
  save_haiku(str(weights), initial_parameters(NFNet(SMALL.name, 10), 0), SMALL.name)
  result = run(
    "train.finetune",
    f"--config={CONFIG}",
    f"--workdir={tmp_path / 'run'}",
    f"--config.data.path={digits}",
    f"--config.initial_weights={weights}",
    *SHORT,
  )
  assert_one_line_error(result, "other.npz", SMALL.name, TINY.name)
